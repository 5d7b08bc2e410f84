package render

import "github.com/alisw/kiln/plan"

// OnHost is all that the plan has on a running host, both halves as one: with
// the files that Kiln makes, the manifest among them, sorted by path, and with
// the home and the shell of each user. The Host half's word counts where both
// have something of one name.
func OnHost(p *plan.Plan) (*plan.Layer, error) {
	if err := checkHost(&p.Host); err != nil {
		return nil, err
	}
	image, err := ImageFiles(&p.Image)
	if err != nil {
		return nil, err
	}
	host, err := hostFiles(p)
	if err != nil {
		return nil, err
	}
	c := &cloudInit{
		plan: p, target: Golden, // whose packages are there
		files:  mergeFiles(image, host),
		groups: mergeNamed(p.Image.Groups, p.Host.Groups, func(g plan.Group) string { return g.Name }),
		users:  mergeNamed(p.Image.Users, p.Host.Users, func(u plan.User) string { return u.Name }),
		units:  mergeNamed(p.Image.Units, p.Host.Units, func(u plan.Unit) string { return u.Name }),
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	users := make([]plan.User, len(c.users))
	for i, u := range c.users {
		u.Group, u.Home, u.Shell = c.primaryGroup(&u), homeOf(&u), shellOf(&u)
		users[i] = u
	}
	return &plan.Layer{Groups: c.groups, Users: users, Units: c.units, Files: c.files, Directories: mergeDirectories(p.Image.Directories, p.Host.Directories)}, nil
}
