package dashboard

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/alisw/kiln/netboot/state"
	"github.com/alisw/kiln/netboot/status"
)

// freshFor is how long a rendering of the wall serves all who look at it: a
// dozen screens cost what one does. It must be less than settle.
const freshFor = 200 * time.Millisecond

// wall is the page that many look at, and what has been rendered of it: the
// part that changes far more often than the whole.
type wall struct {
	mu             sync.Mutex
	at             time.Time
	is             page
	whole, changes *rendered
}

// overview is the page at /, of all hosts; ?stage= and ?q= leave some out.
func (d *Dashboard) overview(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	if query.Get("stage") != "" || query.Get("q") != "" {
		p, err := d.overviewPage(query.Get("stage"), strings.TrimSpace(query.Get("q")))
		if err != nil {
			d.broken(w, r, err)
			return
		}
		d.show(w, r, p, http.StatusOK)
		return
	}
	out, err := d.wallFor(fragment(r))
	if err != nil {
		d.broken(w, r, err)
		return
	}
	out.write(w, r)
}

func (d *Dashboard) wallFor(fragment bool) (*rendered, error) {
	d.wall.mu.Lock()
	defer d.wall.mu.Unlock()
	if began := time.Now(); began.Sub(d.wall.at) > freshFor {
		p, err := d.overviewPage("", "")
		if err != nil {
			return nil, err
		}
		d.wall.at, d.wall.is, d.wall.whole, d.wall.changes = began, p, nil, nil
	}
	out := &d.wall.whole
	if fragment {
		out = &d.wall.changes
	}
	if *out == nil {
		r, err := render(d.wall.is, http.StatusOK, fragment)
		if err != nil {
			return nil, err
		}
		*out = r
	}
	return *out, nil
}

// overviewBody is what the template gets.
type overviewBody struct {
	Counts []groupCount
	Total  int
	Groups []group
	Domain string // what all names end in, and tiles leave out
	Stage  string // the group that is shown alone
	Query  string
	Filter bool
}

type groupCount struct {
	Group   string
	Title   string
	Class   string
	N       int
	Link    string
	Current bool
}

// group is hosts that mean the same to whoever looks.
type group struct {
	Class string
	Title string
	Size  string // of its tiles: xl, l, m, s, or the width of mere names
	Chips bool   // mere names
	Tiles []tile
}

func (d *Dashboard) overviewPage(stage, query string) (page, error) {
	records, err := d.Records.List()
	if err != nil {
		return page{}, err
	}
	status.Sort(records)
	counts := status.Count(records)
	domain := status.Domain(records)
	b := overviewBody{
		Total: len(records), Domain: strings.TrimPrefix(domain, "."), Stage: stage, Query: query, Filter: stage != "" || query != "",
	}
	now := d.now()
	tiles := map[status.Group][]tile{}
	shown := 0
	for i := range records {
		r := &records[i]
		if g := status.GroupOf(r); (stage == "" || stage == g.String()) && strings.Contains(strings.ToLower(r.Host), strings.ToLower(query)) {
			tiles[g] = append(tiles[g], tileOf(r, now, domain))
			shown++
		}
	}
	for _, g := range status.Groups {
		c := groupCount{Group: g.String(), Title: title(g), Class: classOf(g), N: counts[g], Link: "/?" + url.Values{"stage": {g.String()}}.Encode(), Current: stage == g.String()}
		if c.Current {
			c.Link = "/" // once more: all again
		}
		b.Counts = append(b.Counts, c)
	}
	b.Groups = groupsOf(tiles, shown)
	p := d.page("overview", "Installations", b)
	p.Title = windowTitle(counts, len(records))
	p.Alarm = counts[status.Failed] > 0
	return p, nil
}

// windowTitle has the counts that matter in a tab's few letters.
func windowTitle(counts map[status.Group]int, total int) string {
	var parts []string
	if n := counts[status.Failed]; n > 0 {
		parts = append(parts, fmt.Sprintf("%d failed", n))
	}
	if n := counts[status.Installing] + counts[status.InLine]; n > 0 {
		parts = append(parts, fmt.Sprintf("%d installing", n))
	}
	parts = append(parts, fmt.Sprintf("%d of %d ready", counts[status.Ready], total))
	return strings.Join(parts, ", ") + " · Kiln"
}

func title(g status.Group) string {
	s := g.String()
	return strings.ToUpper(s[:1]) + s[1:]
}

// classOf is a group's in the style sheet.
func classOf(g status.Group) string {
	if g == status.Installing {
		return "writing"
	}
	return strings.ReplaceAll(g.String(), " ", "-")
}

// few is how many hosts one screen shows with all there is to say of them.
const few = 24

// groupsOf arranges tiles. A few stand together, in the order of the attention
// that they want; of many, those that nothing happens with shrink to their names.
func groupsOf(tiles map[status.Group][]tile, all int) []group {
	if all == 0 {
		return nil
	}
	if all <= few {
		g := group{Class: "all", Title: "Hosts", Size: "m"}
		for _, s := range status.Groups {
			g.Tiles = append(g.Tiles, tiles[s]...)
		}
		switch {
		case all <= 2:
			g.Size = "xl"
		case all <= few/2:
			g.Size = "l"
		}
		return []group{g}
	}
	var groups []group
	for _, s := range status.Groups {
		n := len(tiles[s])
		if n == 0 {
			continue
		}
		g := group{Class: classOf(s), Title: title(s), Size: "s", Tiles: tiles[s]}
		switch {
		case s != status.Failed && s != status.Installing:
			g.Chips, g.Size = true, chipSize(tiles[s])
		case n <= few/2:
			g.Size = "m"
		}
		groups = append(groups, g)
	}
	return groups
}

// chipSize is the class for names as long as these, and as many.
func chipSize(tiles []tile) string {
	longest := 0
	for i := range tiles {
		n := utf8.RuneCountInString(tiles[i].Name)
		if tiles[i].Class == "in-line" {
			n += len("place 1") // stands beside it
		} else if tiles[i].Error != "" {
			n += len(tiles[i].Doing)
		}
		longest = max(longest, n)
	}
	size := "w99"
	switch {
	case longest <= 8:
		size = "w8"
	case longest <= 14:
		size = "w14"
	case longest <= 22:
		size = "w22"
	}
	if len(tiles) > 3*few {
		size += " many"
	}
	return size
}

// tile is a host as the wall shows it.
type tile struct {
	Host    string
	Name    string // without what all have in common
	Link    string
	Class   string // of its stage: colour and shape
	Word    string
	Percent int
	Moving  bool   // Percent says something
	Doing   string // beyond the word
	Numbers string // bytes, speed, what is left
	Error   string
	Silent  string // for how long
	Since   string // to the script
	For     string
	Steps   []step
}

// step is a stage in the small picture of an installation's way.
type step struct {
	Name  string
	State string // done, now, failed, ahead
}

func tileOf(r *state.Record, now time.Time, domain string) tile {
	t := tile{
		Host: r.Host, Name: status.Clean(strings.TrimSuffix(r.Host, domain)), Link: "/hosts/" + url.PathEscape(r.Host),
		Class: stageClass(r), Word: status.Word(r), Doing: status.Doing(r), Steps: stepsOf(r),
	}
	if !r.Since.IsZero() {
		t.Since, t.For = r.Since.UTC().Format(time.RFC3339), status.Duration(now.Sub(r.Since))
	}
	t.Percent, t.Moving = status.Percent(r)
	if t.Moving {
		t.Numbers = numbers(r, now)
	}
	if t.Error = status.Trouble(r); t.Error != "" {
		return t
	}
	if d, ok := status.Silent(r, now); ok {
		t.Silent = status.Duration(d)
	}
	return t
}

func numbers(r *state.Record, now time.Time) string {
	s := status.Size(r.Done) + " of " + status.Size(r.Total)
	if v, left, ok := status.Speed(r, now); ok && r.Done < r.Total {
		s += ", " + status.Size(v) + "/s, " + status.Duration(left) + " left"
	}
	return s
}

// stageClass is a stage's in the style sheet; each has its colour and shape.
func stageClass(r *state.Record) string {
	if status.GroupOf(r) == status.InLine {
		return "in-line"
	}
	switch r.Stage {
	case state.Armed, state.Booted, state.Writing, state.Written, state.FirstBoot, state.Ready, state.Failed:
		return strings.ReplaceAll(string(r.Stage), " ", "-")
	}
	return "disarmed"
}

func stepsOf(r *state.Record) []step {
	at, last := r.Stage, "now"
	switch r.Stage {
	case state.Failed:
		at, last = r.FailedAt, "failed"
	case state.Ready:
		last = "done"
	}
	var steps []step
	reached := -1
	for i, s := range status.Stages {
		if s == at {
			reached = i
		}
	}
	for i, s := range status.Stages {
		state := "ahead"
		if i < reached {
			state = "done"
		} else if i == reached {
			state = last
		}
		steps = append(steps, step{string(s), state})
	}
	return steps
}
