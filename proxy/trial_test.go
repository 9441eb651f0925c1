package proxy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/token-sidecar/token-sidecar/proxy"
)

// originHost is what the upstream is called by.
const originHost = "origin.test"

// A trial is the real server, proxy and transport between a client that says
// exactly what it is told to, and an origin that looks at every byte. All of
// it is in memory, one request to the origin by connection.
type trial struct {
	clients  chan net.Conn
	origins  sync.WaitGroup
	mu       sync.Mutex
	arrivals []*arrival
}

// newTrial starts a trial. What upstream and guard of cfg leave open is as it
// is by default.
func newTrial(t testing.TB, cfg proxy.Config) *trial {
	tr := &trial{clients: make(chan net.Conn)}
	transport := proxy.NewTransport(proxy.TransportConfig{})
	transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		tr.origins.Go(func() { tr.serveOrigin(far) })
		return near, nil
	}
	if cfg.Upstream == nil {
		cfg.Upstream = &url.URL{Scheme: "http", Host: originHost}
	}
	cfg.Tokens, cfg.Transport = &tokens{token: canary}, transport
	server := &http.Server{
		Handler: proxy.New(cfg), MaxHeaderBytes: 64 << 10, DisableGeneralOptionsHandler: true, ErrorLog: log.New(io.Discard, "", 0),
	}
	go func() { _ = server.Serve(tr) }()
	t.Cleanup(func() { _ = server.Close() })
	return tr
}

// Accept, Close and Addr make a trial the listener of its server.
func (tr *trial) Accept() (net.Conn, error) {
	if conn, ok := <-tr.clients; ok {
		return conn, nil
	}
	return nil, net.ErrClosed
}

func (tr *trial) Close() error {
	close(tr.clients)
	return nil
}

func (*trial) Addr() net.Addr { return &net.UnixAddr{Name: "trial", Net: "unix"} }

// send says these bytes and nothing more, and returns what was answered and
// what the origin got.
func (tr *trial) send(t testing.TB, says string) (answer string, arrivals []*arrival) {
	t.Helper()
	client := &scripted{says: strings.NewReader(says), done: make(chan struct{}), over: make(chan struct{}, 1)}
	tr.clients <- client
	select {
	case <-client.done:
	case <-time.After(20 * time.Second):
		t.Fatalf("no end of %q, answered %q", says, client.answer.String())
	}
	tr.origins.Wait()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	arrivals, tr.arrivals = tr.arrivals, nil
	return client.answer.String(), arrivals
}

// scripted is the server's end of a client that says what it has to say, closes
// its side, and stays for the answers.
type scripted struct {
	says   *strings.Reader
	answer buffer
	once   sync.Once
	done   chan struct{} // closed when the server will answer no more
	over   chan struct{} // tells a waiting read to end
}

// Read knows, as one of a real half-closed client would have to, that the
// server waits for a client to leave by a read of one byte.
func (c *scripted) Read(p []byte) (int, error) {
	if len(p) > 1 || c.says.Len() > 0 {
		return c.says.Read(p)
	}
	select {
	case <-c.over:
		return 0, os.ErrDeadlineExceeded
	case <-c.done:
		return 0, io.EOF
	}
}

func (c *scripted) SetReadDeadline(t time.Time) error {
	if !t.IsZero() && time.Until(t) <= 0 {
		select {
		case c.over <- struct{}{}:
		default:
		}
		return nil
	}
	select { // nobody waits any more
	case <-c.over:
	default:
	}
	return nil
}

func (c *scripted) Write(p []byte) (int, error) { return c.answer.Write(p) }

func (c *scripted) CloseWrite() error {
	c.once.Do(func() { close(c.done) })
	return nil
}

func (c *scripted) Close() error                { return c.CloseWrite() }
func (c *scripted) SetDeadline(time.Time) error { return nil }

func (c *scripted) SetWriteDeadline(time.Time) error { return nil }
func (*scripted) LocalAddr() net.Addr                { return &net.UnixAddr{} }

func (*scripted) RemoteAddr() net.Addr { return &net.UnixAddr{} }

func (tr *trial) serveOrigin(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	from := bufio.NewReader(conn)
	if _, err := from.Peek(1); err != nil {
		return // a connection that was not needed
	}
	a := &arrival{}
	a.fault = a.readHead(from)
	if strings.Contains(strings.ToLower(a.value("Expect")), "100-continue") {
		_, _ = io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n")
	}
	if a.fault == nil {
		a.fault = a.readBody(from)
	}
	if a.whole {
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		if rest, _ := io.ReadAll(from); len(rest) > 0 && a.fault == nil {
			a.fault = fmt.Errorf("%q after its end", rest)
		}
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.arrivals = append(tr.arrivals, a)
}

func shown(arrivals []*arrival) string {
	var all []string
	for _, a := range arrivals {
		all = append(all, fmt.Sprintf("%+v", *a))
	}
	return strings.Join(all, "\n            ")
}
