package main

import (
	"bytes"
	"fmt"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

func init() { programs["undumpable"], programs["forgetful"] = tellWhatProcTells, forgetEnvironment }

func TestProcessesOfTheSameUserReadNeitherMemoryNorEnvironment(t *testing.T) {
	provider := httptest.NewServer(granttest.Makini("client", canary))
	defer provider.Close()
	environ := []string{
		"UPSTREAM_URL=" + provider.URL, "TOKEN_URL=" + provider.URL + "/oauth/token", "CLIENT_ID=client", "CLIENT_SECRET=" + canary,
	}
	s := startBinary(t, withoutRights(exec.Command(forEveryone(t, "token-sidecar"))), environ...)
	s.untilReady(t)
	other := withoutRights(exec.Command("sleep", "60"))
	other.Env = environ
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = other.Process.Kill(), other.Wait() }()

	for _, file := range []string{"environ", "mem", "maps", "auxv", "fd/0"} {
		out, err := read(s.process.Pid, file)
		if err == nil || !strings.Contains(out, "Permission denied") {
			t.Errorf("%s of the sidecar: got %v, %.200q", file, err, out)
		}
		if out, _ := read(other.Process.Pid, file); strings.Contains(out, "Permission denied") {
			t.Errorf("%s of another process is refused as well, so this test shows nothing: %s", file, out)
		}
	}
	if os.Geteuid() == 0 { // who may read the environment of every process
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", s.process.Pid))
		if err != nil || !bytes.Contains(environ, []byte("CLIENT_ID=client")) || bytes.Contains(environ, []byte(canary)) {
			t.Errorf("root reads %v, %q", err, environ)
		}
	}
	if out, err := read(other.Process.Pid, "environ"); err != nil || !strings.Contains(out, canary) {
		t.Errorf("another process's environment: got %v, %q", err, out)
	}
}

// read has a process of the same user read a file of process pid.
func read(pid int, file string) (string, error) {
	command := withoutRights(exec.Command("timeout", "5", "head", "-c", "100000", fmt.Sprintf("/proc/%d/%s", pid, file)))
	command.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH")}
	command.Stdin = strings.NewReader("")
	out, err := command.CombinedOutput()
	return string(out), err
}

func TestSecretsAreErasedFromTheEnvironment(t *testing.T) {
	command := exec.Command("forgetful")
	const kept = "UPSTREAM_URL=https://api.test"
	command.Env = append([]string{kept}, os.Environ()...)
	for _, name := range append(secretVariables(), "TOKEN_URL", "REFRESH_URL", "REVOCATION_URL", "HTTP_PROXY", "https_proxy") {
		command.Env = append(command.Env, name+"="+canary)
	}
	environ, err := command.CombinedOutput()
	if err != nil || !bytes.Contains(environ, []byte(kept)) || !bytes.Contains(environ, []byte("CLIENT_SECRET=")) {
		t.Errorf("got %v, %q", err, environ)
	}
	if bytes.Contains(environ, []byte(canary)) {
		t.Errorf("the secret is still there: %q", environ)
	}
}

// forgetEnvironment is a program of its own, which shows what others could read
// of its environment.
func forgetEnvironment() {
	if err := eraseFromEnvironment(secretVariables()); err != nil {
		log.Fatal(err)
	}
	environ, err := os.ReadFile("/proc/self/environ")
	if err != nil {
		log.Fatal(err)
	}
	_, _ = os.Stdout.Write(environ)
}

func TestThePlaceOfTheEnvironmentIsFoundBehindAnyName(t *testing.T) {
	line := func(name string, start, end string) string {
		return "7 (" + name + ") S" + strings.Repeat(" 1", 46) + " " + start + " " + end + " 0\n"
	}
	for _, name := range []string{"sidecar", "side car", "a) S 2 (b", ""} {
		if start, end, err := environmentRange(line(name, "100", "200")); err != nil || start != 100 || end != 200 {
			t.Errorf("%q: got %d, %d, %v", name, start, end, err)
		}
	}
	for _, stat := range []string{
		"", "7 (sidecar) S 1 1", line("x", "0", "0"), line("x", "200", "100"), line("x", "a", "200"), line("x", "1", "99999999999"),
	} {
		if _, _, err := environmentRange(stat); err == nil {
			t.Errorf("%q: got no error", stat)
		}
	}
}

// The kernel gives the files in /proc of a process that cannot be dumped to
// root. What the sidecar needs of its own it can read all the same.
func TestWhatTheSidecarReadsOfItselfIsStillThere(t *testing.T) {
	out, err := withoutRights(exec.Command("sh", "-c", `ulimit -n 300 && exec "$0"`, forEveryone(t, "undumpable"))).Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got, want := string(out), "dumps forbidden\ndescriptors 300\nall read\n"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}

	provider := httptest.NewServer(&granttest.Server{})
	defer provider.Close()
	s := startBinary(t, withoutRights(exec.Command(forEveryone(t, "token-sidecar"))), "UPSTREAM_URL="+provider.URL, "TOKEN_URL="+provider.URL+"/oauth/token", "CLIENT_ID=client", "CLIENT_SECRET=s")
	answer, err := send("GET", s.admin+"/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for _, metric := range []string{
		"process_cpu_seconds_total", "process_max_fds", "process_open_fds", "process_resident_memory_bytes",
		"process_start_time_seconds", "process_virtual_memory_bytes", "process_network_receive_bytes_total",
	} {
		if !regexp.MustCompile("(?m)^" + metric + " [0-9.e+]+$").MatchString(answer) {
			t.Errorf("no metric %s", metric)
		}
	}
	if regexp.MustCompile("(?m)^process_open_fds 0$").MatchString(answer) {
		t.Error("the sidecar cannot count its own descriptors")
	}
}

// tellWhatProcTells is a program of its own: it reads of itself what the
// sidecar does.
func tellWhatProcTells() {
	keepPrivate(os.Stdout)
	dumpable, _, _ := syscall.Syscall(syscall.SYS_PRCTL, syscall.PR_GET_DUMPABLE, 0, 0)
	if dumpable == 0 {
		fmt.Println("dumps forbidden")
	}
	fmt.Println("descriptors", descriptorLimit(os.DirFS("/")))
	for _, file := range []string{"cgroup", "limits", "stat", "status", "net/netstat"} {
		if content, err := os.ReadFile("/proc/self/" + file); err != nil || len(content) == 0 {
			fmt.Println(file, err)
		}
	}
	if entries, err := os.ReadDir("/proc/self/fd"); err != nil || len(entries) == 0 {
		fmt.Println("fd", err)
	}
	fmt.Println("all read")
}
