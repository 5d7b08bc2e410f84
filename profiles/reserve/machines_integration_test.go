//go:build integration

package reserve

// machines is how many made-up hosts the script is compared on: thousands of
// runs, too many for the inner loop.
const machines = 200
