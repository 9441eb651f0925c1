// Package conformance tests the sidecar's HTTP/2 by clients and servers that
// we did not write. It is a module of its own, so that their dependencies stay
// out of the product's.
package conformance_test

import (
	"bufio"
	"encoding/json"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

var binary string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "conformance")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "token-sidecar")
	build := exec.Command("go", "build", "-o", binary, "./cmd/token-sidecar")
	build.Dir = "../../.." // as it is released: with the versions that its own module asks for
	if out, err := build.CombinedOutput(); err != nil {
		panic(string(out))
	}
	return m.Run()
}

// authority is an authorization server, and the certificate that it and the
// upstream have.
type authority struct {
	*granttest.Server
	https *httptest.Server
	ca    string // a file
}

func newAuthority(t *testing.T) *authority {
	provider := &granttest.Server{}
	a := &authority{Server: provider, https: httptest.NewTLSServer(provider.TokenEndpoint()), ca: filepath.Join(t.TempDir(), "ca.pem")}
	t.Cleanup(a.https.Close)
	block := &pem.Block{Type: "CERTIFICATE", Bytes: a.https.Certificate().Raw}
	if err := os.WriteFile(a.ca, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

// start runs a sidecar that speaks HTTP/2 until the test ends, and returns its
// address.
func (a *authority) start(t *testing.T, environ ...string) string {
	t.Helper()
	sidecar := exec.Command(binary)
	sidecar.Env = append(environ, "TOKEN_URL="+a.https.URL, "TOKEN_CA_FILE="+a.ca, "CLIENT_ID=app", "CLIENT_AUTH_METHOD=none",
		"LISTEN_ADDRESS=127.0.0.1:0", "ADMIN_ADDRESS=127.0.0.1:0", "LISTEN_HTTP2=true")
	stderr, err := sidecar.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sidecar.Start(); err != nil {
		t.Fatal(err)
	}
	log := bufio.NewScanner(stderr)
	address := listeningAddress(t, log)
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		for log.Scan() {
			t.Log(log.Text())
		}
	}()
	t.Cleanup(func() {
		_ = sidecar.Process.Signal(syscall.SIGTERM)
		<-logged
		if err := sidecar.Wait(); err != nil {
			t.Errorf("the sidecar ended with %v", err)
		}
	})
	return address
}

func listeningAddress(t *testing.T, log *bufio.Scanner) string {
	t.Helper()
	for log.Scan() {
		var line struct{ Msg, Address string }
		if json.Unmarshal(log.Bytes(), &line) == nil && line.Address != "" {
			return line.Address
		}
		t.Log(log.Text())
	}
	t.Fatal("the sidecar does not listen")
	return ""
}
