// Quickstart shows Token Sidecar at work, on one machine and without accounts:
//
//	go run ./examples/quickstart
//
// It starts a demo authorization server with a protected API, then the real
// sidecar, sends one plain request through it, and stays up to be played with.
// The demo's tokens live for 20 seconds, and each refresh kills the pair
// before it, so there is something to watch.
//
// With -serve it only serves the demo, for a sidecar that runs elsewhere, such
// as in a cluster: its client is demo-client, with the secret demo-secret.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	address := flag.String("serve", "", "serve the demo at this `address`, and show nothing")
	life := flag.Duration("life", 20*time.Second, "how long the demo's tokens live")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE)
	defer stop()
	run := func() error { return show(ctx, os.Stdout, *life) }
	if *address != "" {
		run = func() error { return serve(ctx, *address, *life) }
	}
	if err := run(); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, address string, life time.Duration) error {
	if _, err := startDemo(ctx, address, life); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// show runs the demonstration on out until ctx is done.
func show(ctx context.Context, out io.Writer, life time.Duration) error {
	demo, err := startDemo(ctx, "127.0.0.1:0", life)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "A demo API is up at %s, with its authorization server. An app that cannot do OAuth gets nowhere:\n\n", demo.url)
	if err := curl(ctx, out, demo.url+"/orders"); err != nil {
		return err
	}

	fmt.Fprint(out, "\nBuilding the sidecar, and starting it with nothing but this:\n\n")
	sidecar, err := startSidecar(ctx, out, demo.url)
	if err != nil {
		return err
	}
	defer sidecar.stop()

	fmt.Fprint(out, "\nThe same plain request, to the sidecar instead:\n\n")
	if err := curl(ctx, out, sidecar.url+"/orders"); err != nil {
		return err
	}
	fmt.Fprintf(out, `
That is the API's word for what went upstream. Your turn, from another terminal:

  curl %[1]s/orders
      again and again: tokens come and go, requests do not notice
  curl %[2]s/metrics | grep ^token_sidecar_token
      refreshes, expiry, failures
  curl %[2]s/readyz
      is there a good token, and if not, why
  curl -X POST %[3]s/demo/outage
      the token endpoint fails for 30 s, which is longer than a token lives
  curl -X POST %[3]s/demo/revoke
      all tokens die behind the sidecar's back

Every line below is the sidecar's own log. Ctrl-C ends the demonstration.

`, sidecar.url, sidecar.admin, demo.url)
	sidecar.log.release(out)
	select {
	case <-ctx.Done():
		return nil
	case err := <-sidecar.done:
		return errors.Join(errors.New("the sidecar has stopped"), err)
	}
}

// sidecar is a running token-sidecar.
type sidecar struct {
	url, admin string
	log        *heldLog
	done       chan error
	stop       func()
}

func startSidecar(ctx context.Context, out io.Writer, provider string) (*sidecar, error) {
	folder, err := os.MkdirTemp("", "quickstart")
	if err != nil {
		return nil, err
	}
	s := &sidecar{log: &heldLog{}, done: make(chan error, 1), stop: func() { _ = os.RemoveAll(folder) }}
	binary := filepath.Join(folder, "token-sidecar")
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", binary, "github.com/token-sidecar/token-sidecar/cmd/token-sidecar")
	if output, err := build.CombinedOutput(); err != nil {
		s.stop()
		return nil, fmt.Errorf("go build: %w\n%s", err, output)
	}
	listen, admin := freeAddress("127.0.0.1:8080"), freeAddress("127.0.0.1:9090")
	environ := []string{
		"UPSTREAM_URL=" + provider, "TOKEN_URL=" + provider + "/oauth/token",
		"CLIENT_ID=demo-client", "CLIENT_SECRET=demo-secret", "REFRESH_CLIENT_AUTH=false",
		"LISTEN_ADDRESS=" + listen, "ADMIN_ADDRESS=" + admin,
	}
	fmt.Fprintf(out, "  %s \\\n  token-sidecar\n", strings.Join(environ, " \\\n  "))

	s.url, s.admin = "http://"+listen, "http://"+admin
	command := exec.Command(binary)
	command.Env, command.Stderr = append(os.Environ(), environ...), s.log
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us, who pass it on once
	if err := command.Start(); err != nil {
		s.stop()
		return nil, err
	}
	exited := make(chan struct{})
	go func() {
		s.done <- command.Wait()
		close(exited)
	}()
	s.stop = func() {
		_ = command.Process.Signal(syscall.SIGTERM)
		<-exited
		_ = os.RemoveAll(folder)
	}
	if err := s.untilReady(ctx); err != nil {
		s.log.release(out)
		s.stop()
		return nil, err
	}
	return s, nil
}

func (s *sidecar) untilReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		if resp, err := http.Get(s.admin + "/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
		case err := <-s.done:
			s.done <- err
			return fmt.Errorf("the sidecar did not start: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return fmt.Errorf("the sidecar is not ready: %w", ctx.Err())
}

// freeAddress returns the address wanted, or another if that is taken.
func freeAddress(wanted string) string {
	l, err := net.Listen("tcp", wanted)
	if err != nil {
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return wanted
		}
	}
	defer l.Close()
	return l.Addr().String()
}

// curl shows a plain request and its answer.
func curl(ctx context.Context, out io.Writer, url string) error {
	fmt.Fprintf(out, "  $ curl -i %s\n", url)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	fmt.Fprintf(out, "  %s %s\n  %s\n", resp.Proto, resp.Status, strings.TrimSpace(string(body)))
	return err
}
