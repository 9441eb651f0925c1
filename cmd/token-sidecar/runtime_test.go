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

// Outside of containers groups are nested, and the strictest limit holds.
func TestMemoryLimitOfNestedGroups(t *testing.T) {
	for _, tt := range []struct{ version, groups, folder, file string }{
		{"1", "5:devices:/x\n4:cpu,memory:/a/b\n0::/\n", "sys/fs/cgroup/memory", "memory.limit_in_bytes"},
		{"2", "0::/a/b\n", "sys/fs/cgroup", "memory.max"},
	} {
		root := fstest.MapFS{"proc/self/cgroup": {Data: []byte(tt.groups)}}
		for _, limit := range []struct {
			group, is string
			want      int64
		}{{"", "max", 0}, {"/a/b", "300", 300}, {"/a", "200", 200}, {"/x", "100", 200}, {"/a/b", "150", 150}} {
			root[tt.folder+limit.group+"/"+tt.file] = &fstest.MapFile{Data: []byte(limit.is)}
			if got := memoryLimit(root); got != limit.want {
				t.Errorf("version %s with %s at %q: got %d, want %d", tt.version, limit.is, limit.group, got, limit.want)
			}
		}
	}
}
