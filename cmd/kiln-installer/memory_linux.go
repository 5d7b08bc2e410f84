package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// memory watches how much of the machine's memory is left.
var memory freeMemory

type freeMemory struct{ least, total atomic.Int64 } // MiB

// watch looks as long as the machine runs.
func (m *freeMemory) watch() {
	for ; ; time.Sleep(200 * time.Millisecond) {
		text, err := os.ReadFile("/proc/meminfo")
		if err != nil {
			return
		}
		m.total.Store(meminfo(string(text), "MemTotal:"))
		if now := meminfo(string(text), "MemAvailable:"); m.least.Load() == 0 || now < m.least.Load() {
			m.least.Store(now)
		}
	}
}

func (m *freeMemory) String() string {
	return fmt.Sprintf("memory: at least %d of %d MiB were free", m.least.Load(), m.total.Load())
}

// meminfo is one value of /proc/meminfo, in MiB.
func meminfo(text, key string) int64 {
	for _, line := range strings.Split(text, "\n") {
		if f := strings.Fields(line); len(f) == 3 && f[0] == key {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				return 0
			}
			return kib >> 10
		}
	}
	return 0
}
