//go:build !integration

package reserve

// machines is how many made-up hosts the script is compared on.
const machines = 24
