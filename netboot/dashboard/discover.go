package dashboard

import (
	"net/http"
	"time"

	"github.com/alisw/kiln/netboot/status"
)

// machineView is a machine as the template gets it.
type machineView struct {
	MAC, Vendor, Firmware string
	First, Last           string
	Since, For            string
	Times                 int
	Entry                 string
}

// discover is the page of machines that nobody has registered.
func (d *Dashboard) discover(w http.ResponseWriter, r *http.Request) {
	machines, err := d.Unknown(r.Context())
	if err != nil {
		d.log().Error("dashboard", "path", r.URL.Path, "error", err)
		d.show(w, r, d.page("error", "Something is wrong", "The unknown machines can't be read. The server's log says why."), http.StatusInternalServerError)
		return
	}
	now := d.now()
	views := make([]machineView, 0, len(machines))
	for _, m := range machines {
		views = append(views, machineView{
			MAC: status.Clean(string(m.MAC)), Vendor: status.Clean(m.Vendor), Firmware: status.Clean(m.Firmware), Times: m.Times, Entry: m.Entry,
			First: d.clock(m.First).Format("2006-01-02 15:04:05"), Last: d.clock(m.Last).Format("2006-01-02 15:04:05"),
			Since: m.Last.UTC().Format(time.RFC3339), For: status.Duration(now.Sub(m.Last)),
		})
	}
	p := d.page("discover", "Unknown machines", views)
	p.Poll = 5
	d.show(w, r, p, http.StatusOK)
}
