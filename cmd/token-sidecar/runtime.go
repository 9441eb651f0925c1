package main

import (
	"io/fs"
	"math"
	"path"
	"runtime"
	"runtime/debug"
	"slices"
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
	// What is not for Go: the program's own pages, which would else be read
	// from the disk again and again, the kernel's part of connections, and what
	// a collection runs late by.
	programMemory  = 8 << 20
	reservePercent = 10
)

// tuneRuntime sets Go's runtime up for a sidecar, where the user has not.
// limit is the memory limit of the container in bytes, 0 if there is none. It
// returns how much of that is for Go.
func tuneRuntime(environ map[string]string, limit int64) int64 {
	if environ["GOMAXPROCS"] == "" {
		runtime.GOMAXPROCS(processors)
	}
	forGo := memoryForGo(limit)
	if environ["GOMEMLIMIT"] == "" && limit > 0 {
		debug.SetMemoryLimit(forGo)
	}
	if environ["GOGC"] == "" && (limit == 0 || limit >= roomy) {
		debug.SetGCPercent(gcPercent)
	}
	if set := debug.SetMemoryLimit(-1); set < math.MaxInt64 {
		forGo = lower(forGo, set)
	}
	return forGo
}

// memoryForGo is the part of a container's memory that is left for Go.
func memoryForGo(limit int64) int64 {
	return max(limit/2, limit/100*(100-reservePercent)-programMemory)
}

// memoryLimit reads the memory limit of the control group that we run in, of
// either version, and of those around it, from the root file system; 0: none.
func memoryLimit(root fs.FS) int64 {
	var limit int64
	for _, version := range []struct{ controller, folder, file string }{
		{"", "sys/fs/cgroup", "memory.max"},
		{"memory", "sys/fs/cgroup/memory", "memory.limit_in_bytes"},
	} {
		group := controlGroup(root, version.controller)
		for ; group != "/"; group = path.Dir(group) {
			limit = lower(limit, readLimit(root, path.Join(version.folder, group, version.file)))
		}
		// In a container the root is its own group, whatever that is called.
		limit = lower(limit, readLimit(root, path.Join(version.folder, version.file)))
	}
	return limit
}

// controlGroup returns the group that we are in for that controller, "/" if
// that is not known (cgroups(7)).
func controlGroup(root fs.FS, controller string) string {
	content, _ := fs.ReadFile(root, "proc/self/cgroup")
	for line := range strings.Lines(string(content)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && slices.Contains(strings.Split(f[1], ","), controller) {
			return path.Join("/", f[2])
		}
	}
	return "/"
}

func readLimit(root fs.FS, file string) int64 {
	content, _ := fs.ReadFile(root, file)
	limit, err := strconv.ParseInt(strings.TrimSpace(string(content)), 10, 64)
	if err != nil || limit > 1<<50 { // "max", or what version 1 says for it
		return 0
	}
	return limit
}

// lower is the lower of two limits, of which 0 is none.
func lower[T int | int64](a, b T) T {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}
