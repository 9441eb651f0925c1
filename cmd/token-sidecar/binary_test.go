package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A sidecar runs as a user without rights, and so does whoever spies on it.
// Tests that are not run by root use their own user for both.
func withoutRights(command *exec.Cmd) *exec.Cmd {
	if os.Geteuid() == 0 {
		command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
	}
	return command
}

// forEveryone returns a copy of one of the test's programs that every user may run.
func forEveryone(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	folder, err := os.MkdirTemp("", "sidecar")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	copied := filepath.Join(folder, program)
	if err := os.WriteFile(copied, content, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	return copied
}

// startedBinary is the program itself.
type startedBinary struct {
	address, admin string
	output         *lockedBuffer
	process        *os.Process
	ended          chan struct{}
}

// startBinary runs it by environ, which need not name addresses, until the test ends.
func startBinary(t *testing.T, command *exec.Cmd, environ ...string) *startedBinary {
	t.Helper()
	s := &startedBinary{output: &lockedBuffer{}, ended: make(chan struct{})}
	command.Env = append([]string{"LISTEN_ADDRESS=127.0.0.1:0", "ADMIN_ADDRESS=127.0.0.1:0"}, environ...)
	command.Stdout, command.Stderr = s.output, s.output
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	s.process = command.Process
	go func() {
		_ = command.Wait()
		close(s.ended)
	}()
	t.Cleanup(func() {
		s.end(syscall.SIGKILL)
		t.Log(s.output)
	})
	listening := regexp.MustCompile(`"address":"([^"]+)","admin_address":"([^"]+)"`)
	s.until(t, "it listens", func() bool {
		found := listening.FindStringSubmatch(s.output.String())
		if found == nil {
			return false
		}
		s.address, s.admin = "http://"+found[1], "http://"+found[2]
		return true
	})
	return s
}

func (s *startedBinary) end(signal os.Signal) {
	_ = s.process.Signal(signal)
	<-s.ended
}

func (s *startedBinary) until(t *testing.T, what string, true func() bool) {
	t.Helper()
	for range 1000 {
		if true() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("not within 10 s: %s\n%s", what, s.output)
}

func (s *startedBinary) untilReady(t *testing.T) {
	t.Helper()
	s.until(t, "it is ready", func() bool {
		answer, err := send("GET", s.admin+"/readyz")
		return err == nil && strings.HasPrefix(answer, "200 ")
	})
}

func matches(pattern, text string) bool { return regexp.MustCompile(pattern).MatchString(text) }
