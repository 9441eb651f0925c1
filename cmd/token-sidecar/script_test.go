package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// programs are those that tests can run as processes of their own.
var programs = map[string]func(){"token-sidecar": main}

func TestMain(m *testing.M) { testscript.Main(m, programs) }

const canary = "s3cr:et/+canary&=% x"

// TestScript runs the binary itself. Each script in testdata has a provider
// of its own, at $PROVIDER, and free addresses for the sidecar.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "testdata/script",
		Setup: setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "term": term, "waitfor": waitFor, "http": doHTTP, "nosecrets": noSecrets,
			"example": useExample, "provider": provider, "inflight": inFlight, "answered": answered, "until-token": untilToken, "until": until, "idle": idle,
		},
	})
}

// world is what a script has around it.
type world struct {
	provider atomic.Pointer[granttest.Server] // replaced, since its fields must not change while it serves
	slow     chan struct{}                    // lets requests to /slow end
	reached  chan struct{}                    // a request to /slow has come through
	inFlight chan string                      // the answer to the one sent by inflight
}

func setup(e *testscript.Env) error {
	w := &world{slow: make(chan struct{}), reached: make(chan struct{}), inFlight: make(chan string, 1)}
	w.provider.Store(granttest.Makini("client", canary))
	slow := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		close(w.reached)
		select {
		case <-w.slow:
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(rw, "late but whole")
	})
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		provider := w.provider.Load()
		switch r.URL.Path {
		case "/slow":
			provider.Protect(slow).ServeHTTP(rw, r)
		case "/oauth/revoke":
			provider.RevocationEndpoint().ServeHTTP(rw, r)
		default:
			provider.ServeHTTP(rw, r)
		}
	}))
	e.Defer(server.Close)
	e.Values["world"] = w
	examples, err := filepath.Abs("../../examples")
	if err != nil {
		return err
	}
	e.Setenv("EXAMPLES", examples)
	e.Setenv("PROVIDER", server.URL)
	e.Setenv("UPSTREAM_URL", server.URL)
	e.Setenv("TOKEN_URL", server.URL+"/oauth/token")
	e.Setenv("CLIENT_ID", "client")
	e.Setenv("CLIENT_SECRET", canary)
	for _, name := range []string{"LISTEN_ADDRESS", "ADMIN_ADDRESS", "UNUSED_ADDRESS"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close()
		e.Setenv(name, l.Addr().String())
	}
	return nil
}

func worldOf(ts *testscript.TestScript) *world { return ts.Value("world").(*world) }

// exits CODE COMMAND ARG... runs a command that must end with that code.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := err.(*exec.ExitError)
		if !ok {
			ts.Fatalf("%v", err)
		}
		code = exit.ExitCode()
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// term sends SIGTERM to what runs in the background.
func term(ts *testscript.TestScript, _ bool, _ []string) {
	for _, c := range ts.BackgroundCmds() {
		ts.Check(c.Process.Signal(syscall.SIGTERM))
	}
}

// waitfor STATUS URL asks until the answer has that status, or, with !, until
// nobody answers.
func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	last := ""
	for range 1000 {
		resp, err := http.Get(args[1])
		if err != nil {
			last = err.Error()
			if neg {
				return
			}
		} else {
			resp.Body.Close()
			if last = resp.Status; strings.HasPrefix(last, args[0]) != neg {
				return
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("%s: still %s", args[1], last)
}

// http METHOD URL sends a request and prints the answer.
func doHTTP(ts *testscript.TestScript, _ bool, args []string) {
	answer, err := send(args[0], args[1])
	ts.Check(err)
	_, _ = io.WriteString(ts.Stdout(), answer)
}

func send(method, url string) (string, error) {
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var b strings.Builder
	fmt.Fprintln(&b, resp.Status)
	_ = resp.Header.Write(&b)
	_, err = io.Copy(&b, resp.Body)
	return b.String(), err
}

// until PATTERN URL asks until the answer matches.
func until(ts *testscript.TestScript, _ bool, args []string) {
	pattern, answer := regexp.MustCompile(args[0]), ""
	for range 1000 {
		var err error
		answer, err = send("GET", args[1])
		ts.Check(err)
		if pattern.MatchString(answer) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("still %s", answer)
}

// until-token N URL asks until the Nth token is in use, or a later one. No
// answer in between may be anything but 200.
func untilToken(ts *testscript.TestScript, _ bool, args []string) {
	for range 1000 {
		answer, err := send("GET", args[1])
		ts.Check(err)
		if !strings.HasPrefix(answer, "200 ") {
			ts.Fatalf("got %s", answer)
		}
		if _, number, _ := strings.Cut(answer, `"token_number":`); number >= args[0] {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("token %s did not come", args[0])
}

// nosecrets FILE... fails if a file, or stdout or stderr, holds a secret in any
// spelling, or a token.
func noSecrets(ts *testscript.TestScript, _ bool, args []string) {
	secrets := append(granttest.Spellings(canary, "client:"+canary), "access-0", "refresh-0")
	for _, file := range args {
		content := ts.ReadFile(file)
		if i := slices.IndexFunc(secrets, func(s string) bool { return strings.Contains(content, s) }); i >= 0 {
			ts.Fatalf("%s holds the secret %q", file, secrets[i])
		}
	}
}

// example FILE sets the environment to exactly that file of examples, but for
// the two URLs, and makes the provider behave as the file's API.
func useExample(ts *testscript.TestScript, _ bool, args []string) {
	content, err := os.ReadFile(ts.Getenv("EXAMPLES") + "/" + args[0])
	ts.Check(err)
	w := worldOf(ts)
	for key, value := range parseEnvFile(string(content)) {
		if u, err := url.Parse(value); err == nil && u.IsAbs() {
			value = ts.Getenv("PROVIDER") + u.Path
		}
		ts.Setenv(key, value)
	}
	id, secret := ts.Getenv("CLIENT_ID"), ts.Getenv("CLIENT_SECRET")
	api := granttest.AdminV3(id, secret)
	if args[0] == "makini.env" {
		api = granttest.Makini(id, secret)
		api.Life, api.RefreshLife = 2*time.Second, 4*time.Second // or there would be no rotation to see
	}
	w.provider.Store(api)
}

// provider MOOD changes how the provider behaves.
func provider(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	switch args[0] {
	case "down":
		w.provider.Load().Always(granttest.EchoRequest(500))
	case "up":
		w.provider.Load().Always(nil)
	case "revoke":
		w.provider.Load().Revoke()
	case "release":
		close(w.slow)
	case "forgot": // what a client has had revoked
		_, _ = fmt.Fprintln(ts.Stdout(), w.provider.Load().Stats().Revoked)
	default:
		ts.Fatalf("no mood %s", args[0])
	}
}

// inflight URL sends a request that the provider answers when it is released.
func inFlight(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	go func() {
		answer, err := send("GET", args[0])
		w.inFlight <- fmt.Sprint(answer, err)
	}()
	<-w.reached
}

// idle N ADDRESS makes that many connections, and leaves them alone.
func idle(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	for range n {
		conn, err := net.Dial("tcp", args[1])
		ts.Check(err)
		ts.Defer(func() { _ = conn.Close() })
	}
}

// answered prints the answer to the request sent by inflight.
func answered(ts *testscript.TestScript, _ bool, _ []string) {
	_, _ = io.WriteString(ts.Stdout(), <-worldOf(ts).inFlight)
}
