package main

import (
	"io/fs"
	"net/http"
	"strconv"
	"strings"
)

const (
	// What the sidecar needs at rest, and what is added by each request in
	// flight, at worst, and by each idle connection. Measured: a GET in flight
	// takes 45 KiB, or 64 with TLS to the upstream; 97 if its body stalls, and
	// 142 if its answer is not read; an idle connection takes 28.
	memoryAtRest        = 4 << 20
	memoryPerRequest    = 144 << 10
	memoryPerConnection = 28 << 10
	// HTTP/2 would else take in up to 4 MiB of an answer that is not read.
	streamMemory = 64 << 10

	// Descriptors that are nobody's but the sidecar's own: for listeners, logs
	// and files, lookups, token requests, a connection that waits for room.
	ownDescriptors   = 32
	adminConnections = 8 // out of those
	debugConnections = 2 // as well
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

// frugal keeps a transport to the memory that a request may take.
func frugal(t *http.Transport) {
	if t.HTTP2 == nil {
		t.HTTP2 = &http.HTTP2Config{}
	}
	t.HTTP2.MaxReceiveBufferPerStream = streamMemory
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
