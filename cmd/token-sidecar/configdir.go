package main

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
)

// withFiles adds to an environment the variables that CONFIG_DIR holds, each
// in a file of its name, as a mounted Secret or ConfigMap has them. What the
// environment sets goes first. Variables that can be given as a file are, so
// that a change reaches the running sidecar. It also returns the names of
// files that stand for no variable.
func withFiles(environ map[string]string, f faults) (merged map[string]string, unknown []string) {
	const variable = "CONFIG_DIR"
	folder := environ[variable]
	if folder == "" {
		return environ, nil
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		f.add(variable, err.Error())
		return environ, nil
	}
	known := map[string]bool{}
	for _, v := range variables() {
		known[v.name] = v.name != variable
	}
	merged = maps.Clone(environ)
	for _, entry := range entries {
		name, path := entry.Name(), filepath.Join(folder, entry.Name())
		switch {
		case strings.HasPrefix(name, "."), isFolder(path): // Kubernetes keeps the versions of a volume in such
		case !known[name]:
			unknown = append(unknown, name)
		case environ[name] != "", environ[name+"_FILE"] != "":
		case known[name+"_FILE"]:
			merged[name+"_FILE"] = path
		default:
			content, err := os.ReadFile(path)
			f.unless(err == nil, name, fmt.Sprint(err))
			merged[name] = strings.TrimRight(string(content), "\r\n")
		}
	}
	return merged, unknown
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&fs.ModeDir != 0
}
