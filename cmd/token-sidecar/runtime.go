package main

import (
	"io/fs"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
)

const (
	// One processor carries tens of thousands of requests a second. More of
	// them only keep each other awake at the load that a sidecar sees.
	processors = 1

	// The longest pauses of a small Go program are its garbage collections:
	// where there is room the heap may grow to five times what is live first.
	gcPercent = 400
	roomy     = 64 << 20
	// Memory that is not Go's heap, and what a collection runs late by.
	reservePercent = 10
)

// tuneRuntime sets Go's runtime up for a sidecar, where the user has not.
// limit is the memory limit of the container in bytes, 0 if there is none.
func tuneRuntime(environ map[string]string, limit int64) {
	if environ["GOMAXPROCS"] == "" {
		runtime.GOMAXPROCS(processors)
	}
	if environ["GOMEMLIMIT"] == "" && limit > 0 {
		debug.SetMemoryLimit(limit / 100 * (100 - reservePercent))
	}
	if environ["GOGC"] == "" && (limit == 0 || limit >= roomy) {
		debug.SetGCPercent(gcPercent)
	}
}

// memoryLimit reads the memory limit of the control group that we run in, of
// either version, from the root file system; 0: none.
func memoryLimit(root fs.FS) int64 {
	for _, file := range []string{"sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		content, err := fs.ReadFile(root, file)
		if err != nil {
			continue
		}
		limit, err := strconv.ParseInt(strings.TrimSpace(string(content)), 10, 64)
		if err != nil || limit > 1<<50 { // "max", or what version 1 says for it
			return 0
		}
		return limit
	}
	return 0
}
