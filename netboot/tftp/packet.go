package tftp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// The packets, by the number that they begin with.
const (
	opRead   = 1
	opWrite  = 2
	opData   = 3
	opAck    = 4
	opError  = 5
	opOptAck = 6
)

// Codes of error packets.
const (
	codeUndefined = 0
	codeNotFound  = 1
	codeAccess    = 2
	codeIllegal   = 4
	codeUnknownID = 5 // the packet is of another transfer
)

// headerSize is what a data packet has before its data, and all that an
// acknowledgement is.
const headerSize = 4

// maxRequest is the most bytes of a request that are looked at. RFC 2347 allows
// 512; some firmware pads.
const maxRequest = 1500

// request is a client's wish to read or write a file.
type request struct {
	Write bool
	Name  string // as it came
	Mode  string // in lower case
	// Options are in the client's order, names in lower case. Of two with the same
	// name the first counts.
	Options []option
}

type option struct{ Name, Value string }

// maxOptions bounds what a request can make us remember.
const maxOptions = 16

// parseRequest reads a request. It is tolerant where firmware is known to be
// sloppy: the last string may lack its zero, and zeros may follow.
func parseRequest(p []byte) (*request, error) {
	if len(p) < 2 {
		return nil, errors.New("the packet is too short for a request")
	}
	r := &request{}
	switch op := binary.BigEndian.Uint16(p); op {
	case opRead:
	case opWrite:
		r.Write = true
	default:
		return nil, fmt.Errorf("packet type %d isn't a request", op)
	}
	rest := p[2:min(len(p), maxRequest)]
	var name, mode string
	name, rest = cutString(rest)
	mode, rest = cutString(rest)
	if name == "" {
		return nil, errors.New("the request names no file")
	}
	if mode == "" {
		return nil, errors.New("the request has no mode")
	}
	r.Name, r.Mode = name, strings.ToLower(mode)
	for len(rest) > 0 && len(r.Options) < maxOptions {
		var o option
		o.Name, rest = cutString(rest)
		if o.Name == "" {
			break // padding
		}
		o.Value, rest = cutString(rest)
		o.Name = strings.ToLower(o.Name)
		if _, twice := r.option(o.Name); !twice {
			r.Options = append(r.Options, o)
		}
	}
	return r, nil
}

func (r *request) option(name string) (string, bool) {
	for _, o := range r.Options {
		if o.Name == name {
			return o.Value, true
		}
	}
	return "", false
}

// cutString takes a string that ends with a zero, or with the packet.
func cutString(p []byte) (s string, rest []byte) {
	before, after, _ := bytes.Cut(p, []byte{0})
	return string(before), after
}

func errorPacket(code uint16, text string) []byte {
	p := binary.BigEndian.AppendUint16(nil, opError)
	p = binary.BigEndian.AppendUint16(p, code)
	p = append(p, text...)
	return append(p, 0)
}

func optAckPacket(options []option) []byte {
	p := binary.BigEndian.AppendUint16(nil, opOptAck)
	for _, o := range options {
		p = append(p, o.Name...)
		p = append(p, 0)
		p = append(p, o.Value...)
		p = append(p, 0)
	}
	return p
}

// clientError is a client's error packet: it doesn't want the rest.
type clientError struct {
	Code uint16
	Text string
}

func (e *clientError) Error() string {
	return fmt.Sprintf("the client stopped: code %d: %q", e.Code, e.Text)
}

func parseError(p []byte) *clientError {
	e := &clientError{Code: binary.BigEndian.Uint16(p[2:])}
	e.Text, _ = cutString(p[headerSize:min(len(p), headerSize+200)])
	return e
}
