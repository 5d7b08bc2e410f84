package images

import "testing"

func TestNewest(t *testing.T) {
	var files []File
	for _, v := range []string{"6.1.0-9-amd64", "6.1.0-56-amd64", "6.1.0-10-amd64"} {
		files = append(files, File{Path: "/boot/vmlinuz-" + v, Type: "file"})
	}
	files = append(files, File{Path: "/boot/vmlinuz-9", Type: "link"})
	if got := Newest(files, "/boot/vmlinuz-"); got != "/boot/vmlinuz-6.1.0-56-amd64" {
		t.Errorf("got %s", got)
	}
	if got := Newest(files, "/boot/initrd.img-"); got != "" {
		t.Errorf("got %s", got)
	}
}
