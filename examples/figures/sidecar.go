package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A bench is where one figure is measured. What is started on it is stopped
// when the figure ends.
type bench struct {
	folder string   // holds the binary and the logs
	figure string   // its name
	wrap   []string // a command that is given the sidecar's to run; none by default
	undo   []func()
}

func (b *bench) atEnd(f func()) { b.undo = append(b.undo, f) }

func (b *bench) clear() {
	for i := len(b.undo) - 1; i >= 0; i-- {
		b.undo[i]()
	}
	b.undo = nil
}

func build(ctx context.Context, folder string) error {
	command := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(folder, "token-sidecar"),
		"github.com/token-sidecar/token-sidecar/cmd/token-sidecar")
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, output)
	}
	return nil
}

// A sidecar is a running token-sidecar.
type sidecar struct {
	url, admin string
	process    *os.Process
	exited     chan struct{} // closed when it has ended
	err        error         // what it ended with; read after exited
}

// start brings up p, and a sidecar before it that is ready.
func (b *bench) start(ctx context.Context, p *provider, settings ...string) (*sidecar, error) {
	s, err := b.launch(ctx, p, settings...)
	if err != nil {
		return nil, err
	}
	return s, s.until(ctx, "/readyz")
}

// launch is start without the wait for a first token.
func (b *bench) launch(ctx context.Context, p *provider, settings ...string) (*sidecar, error) {
	if err := p.open(); err != nil {
		return nil, err
	}
	b.atEnd(p.close)
	listen, err := freeAddress()
	if err != nil {
		return nil, err
	}
	admin, err := freeAddress()
	if err != nil {
		return nil, err
	}
	s := &sidecar{url: "http://" + listen, admin: "http://" + admin, exited: make(chan struct{})}
	environ := append([]string{
		"UPSTREAM_URL=http://" + p.api.address, "TOKEN_URL=http://" + p.token.address,
		"CLIENT_ID=" + clientID, "CLIENT_SECRET=" + clientSecret,
		"LISTEN_ADDRESS=" + listen, "ADMIN_ADDRESS=" + admin,
	}, settings...)
	if err := b.run(s, environ); err != nil {
		return nil, err
	}
	return s, s.until(ctx, "/livez")
}

func (b *bench) run(s *sidecar, environ []string) error {
	log, err := os.OpenFile(filepath.Join(b.folder, b.figure+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	b.atEnd(func() { _ = log.Close() })
	line := append(b.wrap, filepath.Join(b.folder, "token-sidecar"))
	command := exec.Command(line[0], line[1:]...)
	command.Env, command.Stderr = append(environ, "PATH="+os.Getenv("PATH")), log
	if err := command.Start(); err != nil {
		return err
	}
	s.process = command.Process
	go func() {
		s.err = command.Wait()
		close(s.exited)
	}()
	b.atEnd(s.stop)
	return nil
}

// stop ends the sidecar if it still runs.
func (s *sidecar) stop() {
	_ = s.process.Signal(syscall.SIGTERM)
	select {
	case <-s.exited:
	case <-time.After(5 * time.Second):
		_ = s.process.Kill()
		<-s.exited
	}
}

// until returns when path of the admin port answers 200.
func (s *sidecar) until(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		if s.healthy(ctx, path) {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-s.exited:
			return fmt.Errorf("the sidecar ended: %w", errors.Join(s.err, ctx.Err()))
		case <-time.After(10 * time.Millisecond):
		}
	}
	return fmt.Errorf("no %s: %w", path, ctx.Err())
}

func (s *sidecar) healthy(ctx context.Context, path string) bool {
	resp, err := s.get(ctx, path)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func (s *sidecar) get(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.admin+path, nil)
	if err != nil {
		return nil, err
	}
	req.Close = true // as the kubelet does
	return (&http.Client{Timeout: 5 * time.Second}).Do(req)
}

// metrics returns every series by its name and labels.
func (s *sidecar) metrics(ctx context.Context) (map[string]float64, error) {
	resp, err := s.get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return parseSeries(text), err
}

// parseSeries reads lines of a name, a space and a number; others give 0.
func parseSeries(text []byte) map[string]float64 {
	series := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if i := strings.LastIndexByte(line, ' '); i > 0 {
			series[line[:i]], _ = strconv.ParseFloat(line[i+1:], 64)
		}
	}
	return series
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
