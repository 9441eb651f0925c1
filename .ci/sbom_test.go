package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestTheBillListsWhatGoSaysTheProgramIsMadeOf(t *testing.T) {
	program := filepath.Join(t.TempDir(), "token-sidecar")
	run(t, "..", "go", "build", "-buildvcs=false", "-o", program, "./cmd/token-sidecar")
	bill := billOf(t, program)

	want := madeOf(t, program)
	if len(want) < 2 {
		t.Fatalf("go version -m lists %q", want)
	}
	if got := listed(bill); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestTheBillIsOfThatVeryProgram(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	whole := billOf(t, program).Metadata.Component
	if want := []hash{{"SHA-256", fmt.Sprintf("%x", sha256.Sum256(content))}}; !slices.Equal(whole.Hashes, want) {
		t.Errorf("got %v, want %v", whole.Hashes, want)
	}
	if whole.Version != "1.2.3" {
		t.Errorf("got version %s, want 1.2.3", whole.Version)
	}
}

func TestAReplacedModuleIsListedAsWhatReplacesIt(t *testing.T) {
	folder := t.TempDir()
	write(t, folder, "go.mod", "module m\nrequire old.example v1.0.0\nreplace old.example => ./new\n")
	write(t, folder, "main.go", "package main\nimport _ \"old.example\"\nfunc main() {}\n")
	write(t, folder, "new/go.mod", "module old.example\n")
	write(t, folder, "new/new.go", "package old\n")
	program := filepath.Join(folder, "m")
	run(t, folder, "go", "build", "-buildvcs=false", "-o", program)

	if got := billOf(t, program).Components; len(got) != 2 || got[1].Name != "./new" {
		t.Errorf("got %v, want Go and ./new", got)
	}
}

// madeOf asks Go for the modules of a program, itself the first, each with its
// version and what go.sum has on it.
func madeOf(t *testing.T, program string) []string {
	first, rest, _ := strings.Cut(run(t, ".", "go", "version", "-m", program), "\n")
	_, version, _ := strings.Cut(first, ": go")
	modules := []string{"std " + version}
	for line := range strings.Lines(rest) {
		if fields := strings.Fields(line); fields[0] == "dep" {
			modules = append(modules, strings.Join(fields[1:], " "))
		}
	}
	return modules
}

func listed(bill document) (modules []string) {
	for _, c := range bill.Components {
		module := c.Name + " " + c.Version
		for _, p := range c.Properties {
			module += " " + p.Value
		}
		modules = append(modules, module)
	}
	return modules
}

func billOf(t *testing.T, program string) (bill document) {
	t.Helper()
	var out bytes.Buffer
	if err := describe(&out, program, "1.2.3"); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out.Bytes(), &bill); err != nil {
		t.Fatal(err)
	}
	return bill
}

func run(t *testing.T, folder string, command ...string) string {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir = folder
	output, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", command, err, output)
	}
	return string(output)
}

func write(t *testing.T, folder, name, text string) {
	t.Helper()
	path := filepath.Join(folder, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
