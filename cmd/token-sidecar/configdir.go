package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
)

// maxSetting is more bytes than any setting needs, a bundle of CAs among them.
const maxSetting = 1 << 20

// withFiles adds to an environment the variables that CONFIG_DIR holds, each
// in a file of its name, as a mounted Secret or ConfigMap has them. What the
// environment sets goes first; an empty file sets nothing. Where there is a
// variable NAME_FILE, it is given the path of the file NAME, so that a change
// reaches the running sidecar. It also returns the names of files that stand
// for no variable.
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
		asFile := name + "_FILE"
		switch {
		case strings.HasPrefix(name, "."), isFolder(path): // as the former versions of a volume
		case !known[asFile] && (!known[name] || strings.HasSuffix(name, "_FILE")):
			unknown = append(unknown, name)
		case environ[name] != "", environ[asFile] != "":
		default:
			content, err := readSetting(path)
			if known[asFile] && content != "" {
				name, content = asFile, path
			}
			f.unless(err == nil, name, fmt.Sprint(err))
			merged[name] = content
		}
	}
	return merged, unknown
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// readSetting reads a file that holds one setting, without the line end that
// editors put behind it. Its errors name the path and the cause alone.
func readSetting(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() || info.Size() > maxSetting {
		return "", fmt.Errorf("%s is no regular file of at most 1 MiB", path)
	}
	content, err := os.ReadFile(path)
	return strings.TrimRight(string(content), "\r\n"), err
}
