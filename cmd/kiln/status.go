package main

import "github.com/alisw/kiln/netboot/state"

// statusOf is what is printed of records as JSON: without the hashes of what hosts
// prove themselves with.
func statusOf(list []*state.Record) []*state.Record {
	out := make([]*state.Record, len(list))
	for i, r := range list {
		shown := *r
		shown.TokenHash, shown.SessionHash = "", ""
		out[i] = &shown
	}
	return out
}
