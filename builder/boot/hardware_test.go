package boot

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/alisw/kiln/plan"
)

func TestHardwareNetwork(t *testing.T) {
	prefixes := func(list ...string) (p []netip.Prefix) {
		for _, s := range list {
			p = append(p, netip.MustParsePrefix(s))
		}
		return p
	}
	addr := netip.MustParseAddr
	eno1 := plan.Interface{
		Name: "eno1", MAC: "52:54:00:12:34:01", Addresses: prefixes("2001:db8::11/64", "192.0.2.11/24"),
		Gateways: []netip.Addr{addr("2001:db8::1"), addr("192.0.2.1")}, DNS: []netip.Addr{addr("198.51.100.53"), addr("192.0.2.53")},
	}
	bare := eno1
	bare.Gateways, bare.DNS, bare.Addresses = nil, nil, prefixes("192.0.2.2/24")
	same := eno1
	same.DNS = []netip.Addr{addr("192.0.2.1")}
	small := eno1
	small.Addresses = prefixes("192.0.2.2/30")
	point := eno1
	point.Addresses = prefixes("192.0.2.11/32")
	for _, tt := range []struct {
		name  string
		given []plan.Interface
		want  []NIC
		notes int
	}{
		{"fixed", []plan.Interface{eno1}, []NIC{{
			MAC: "52:54:00:12:34:01", Network: netip.MustParsePrefix("192.0.2.0/24"), Gateway: addr("192.0.2.1"), DNS: addr("192.0.2.53"), Lease: addr("192.0.2.2"),
		}}, 0},
		{"without a gateway", []plan.Interface{bare}, []NIC{{
			MAC: "52:54:00:12:34:01", Network: netip.MustParsePrefix("192.0.2.0/24"), Gateway: addr("192.0.2.1"), DNS: addr("192.0.2.3"), Lease: addr("192.0.2.4"),
		}}, 0},
		{"gateway and name server are one", []plan.Interface{same}, []NIC{{
			MAC: "52:54:00:12:34:01", Network: netip.MustParsePrefix("192.0.2.0/24"), Gateway: addr("192.0.2.1"), DNS: addr("192.0.2.2"), Lease: addr("192.0.2.3"),
		}}, 0},
		{"the smallest", []plan.Interface{small}, []NIC{{
			MAC: "52:54:00:12:34:01", Network: netip.MustParsePrefix("192.0.2.0/30"), Gateway: addr("192.0.2.1"), DNS: addr("192.0.2.3"), Lease: addr("192.0.2.0"),
		}}, 0},
		{"too small for QEMU", []plan.Interface{point}, []NIC{{MAC: "52:54:00:12:34:01"}}, 0},
		{"from DHCP, without a MAC", []plan.Interface{{Name: "eno1", DHCP4: true}}, []NIC{{}}, 1},
		{"a bond and a VLAN on it", []plan.Interface{
			{Name: "bond0", Bond: &plan.Bond{Members: []string{"eno1", "eno2"}}, Addresses: prefixes("192.0.2.12/24"), Gateways: []netip.Addr{addr("192.0.2.1")}},
			{Name: "eno1", MAC: "52:54:00:12:34:02"}, {Name: "eno2", MAC: "52:54:00:12:34:03"},
			{Name: "vlan10", VLAN: &plan.VLAN{ID: 10, Link: "bond0"}, DHCP4: true},
		}, []NIC{
			{MAC: "52:54:00:12:34:02", Network: netip.MustParsePrefix("192.0.2.0/24"), Gateway: addr("192.0.2.1"), DNS: addr("192.0.2.2"), Lease: addr("192.0.2.3")},
			{MAC: "52:54:00:12:34:03", Network: netip.MustParsePrefix("192.0.2.0/24"), Gateway: addr("192.0.2.1"), DNS: addr("192.0.2.2"), Lease: addr("192.0.2.3")},
		}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nics, _, notes, err := Hardware(&plan.Host{Network: plan.Network{Interfaces: tt.given}})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, nics, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if len(notes) != tt.notes {
				t.Errorf("notes: %q", notes)
			}
		})
	}
}

func TestHardwareDisks(t *testing.T) {
	for _, tt := range []struct {
		name string
		rule plan.DiskRule
		want DataDisk
		err  string
	}{
		{"serial", plan.DiskRule{Serial: "S3X"}, DataDisk{Serial: "S3X", Size: newDataDisk}, ""},
		{"smallest", plan.DiskRule{MinSize: 500e9 + 1}, DataDisk{Size: 500e9 + 512}, ""},
		{"largest", plan.DiskRule{MaxSize: 1e9}, DataDisk{Size: 1e9}, ""},
		{"exact", plan.DiskRule{MinSize: 960197124096, MaxSize: 960197124096}, DataDisk{Size: 960197124096}, ""},
		{"between", plan.DiskRule{MinSize: 1e9, MaxSize: 1e9 + 300}, DataDisk{Size: 1e9}, ""},
		{"wwn", plan.DiskRule{WWN: "0x5000c500a0b1c2d3"}, DataDisk{WWN: "0x5000c500a0b1c2d3", Size: newDataDisk}, ""},
		{"nvme's wwn", plan.DiskRule{WWN: "eui.0025385b71b0c1d2"}, DataDisk{}, "hosts.yaml:7:3: the disk of /build has the wwn"},
		{"path", plan.DiskRule{Path: "/dev/disk/by-path/pci-0000:00:1f.2-ata-1"}, DataDisk{}, "no virtual machine has: give its rule a serial"},
		{"odd serial", plan.DiskRule{Serial: "a b"}, DataDisk{}, `the serial "a b", which QEMU can't give`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := plan.DataDisk{Mount: "/build", Disk: tt.rule}
			d.Origin.File, d.Origin.Line, d.Origin.Column = "hosts.yaml", 7, 3
			_, disks, _, err := Hardware(&plan.Host{Disks: []plan.DataDisk{d}})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil || len(disks) != 1 || disks[0] != tt.want {
				t.Errorf("got %+v, %v, want %+v", disks, err, tt.want)
			}
		})
	}
}
