package main

import (
	"testing"
	"testing/fstest"
)

func TestMemoryLimit(t *testing.T) {
	v2, v1 := "sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"
	for _, tt := range []struct {
		file, content string
		want          int64
	}{
		{v2, "67108864\n", 64 << 20},
		{v2, "max\n", 0},
		{v1, "67108864\n", 64 << 20},
		{v1, "9223372036854771712\n", 0},
		{v2, "nonsense", 0},
		{"elsewhere", "1", 0},
	} {
		root := fstest.MapFS{tt.file: {Data: []byte(tt.content)}}
		if got := memoryLimit(root); got != tt.want {
			t.Errorf("%s with %q: got %d, want %d", tt.file, tt.content, got, tt.want)
		}
	}
}
