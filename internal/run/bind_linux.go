package run

import "syscall"

// bind has the kernel kill the program when the thread that starts it ends, as
// it does when Kiln is killed.
func bind(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }
