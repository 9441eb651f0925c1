package main

import (
	"runtime"
	"runtime/debug"
)

const (
	// One processor carries tens of thousands of requests a second. More of
	// them only keep each other awake at the load that a sidecar sees.
	processors = 1

	// Below softLimit the collector runs when the heap is five times what is
	// live, since the shortest pauses are those that do not come; from there
	// on it works as hard as it takes to stay below.
	gcPercent = 400
	softLimit = 32 << 20
)

// tuneRuntime sets Go's runtime up for a sidecar, where the user has not.
func tuneRuntime(environ map[string]string) {
	if environ["GOMAXPROCS"] == "" {
		runtime.GOMAXPROCS(processors)
	}
	if environ["GOGC"] == "" && environ["GOMEMLIMIT"] == "" {
		debug.SetGCPercent(gcPercent)
		debug.SetMemoryLimit(softLimit)
	}
}
