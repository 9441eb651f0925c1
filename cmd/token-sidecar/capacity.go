package main

import (
	"io/fs"
	"strconv"
	"strings"
)

const (
	// What the sidecar needs at rest, and what each request in flight and each
	// idle connection adds to that; see CONTRIBUTING on how it is measured.
	memoryAtRest        = 12 << 20
	memoryPerRequest    = 60 << 10
	memoryPerConnection = 20 << 10

	// Descriptors that are nobody's but the sidecar's own: for listeners, logs
	// and files, lookups, token requests, a connection that waits for room.
	ownDescriptors   = 32
	adminConnections = 8 // out of those
)

// A capacity is how much the sidecar takes on at a time; 0: no limit.
type capacity struct{ inFlight, connections int }

// within fits what is asked for into a limit of memory for Go, in bytes, and
// one of descriptors, 0 if there is none. What is not asked for becomes as
// much as fits, with an idle connection for each request in flight.
func (c capacity) within(memory int64, descriptors int) capacity {
	if c.inFlight == 0 && memory > 0 {
		c.inFlight = max(1, int((memory-memoryAtRest)/(memoryPerRequest+memoryPerConnection)))
	}
	spare := max(3, descriptors-ownDescriptors)
	if descriptors > 0 { // two for each request, one for each idle connection
		c.inFlight = lower(spare/3, c.inFlight)
	}
	if c.connections == 0 {
		c.connections = 2 * c.inFlight
	}
	if descriptors > 0 {
		c.connections = min(spare-c.inFlight, c.connections)
	}
	return c
}

// descriptorLimit reads how many files this process may have open, from the
// root file system; 0: unknown or unlimited. Go has raised it as far as it may.
func descriptorLimit(root fs.FS) int {
	content, err := fs.ReadFile(root, "proc/self/limits")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(content)) {
		if limits, ok := strings.CutPrefix(line, "Max open files"); ok {
			soft, _ := strconv.Atoi(strings.Fields(limits + " 0")[0])
			return soft
		}
	}
	return 0
}
