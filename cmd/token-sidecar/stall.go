package main

import (
	"errors"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// A stallListener cuts off clients that take nothing of what is written to
// them for so long. A connection that nothing is written to may be silent for
// as long as it likes.
type stallListener struct {
	net.Listener
	patience time.Duration // 0: for ever
}

func (l stallListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil || l.patience == 0 {
		return c, err
	}
	return &stallConn{conn{c}, l.patience}, nil
}

type stallConn struct {
	conn
	patience time.Duration
}

// Write goes on for as long as some of p is taken.
func (c *stallConn) Write(p []byte) (written int, err error) {
	for {
		_ = c.SetWriteDeadline(time.Now().Add(c.patience))
		n, err := c.Conn.Write(p[written:])
		if written += n; n == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return written, err
		}
	}
}

// stallHandler does for the streams of HTTP/2 what a stallListener does for
// connections: a client may read its other streams, and never open the window
// of one (RFC 9113 section 5.2).
func stallHandler(next http.Handler, patience time.Duration) http.Handler {
	if patience == 0 {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 {
			// The server has yet to send the end of the answer.
			defer func() { _ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(patience)) }()
			w = newStallStream(w, patience)
		}
		next.ServeHTTP(w, r)
	})
}

// A stallStream is reset if a write takes too long.
type stallStream struct {
	http.ResponseWriter
	patience time.Duration

	mu    sync.Mutex
	due   time.Time // when the write has to end; zero: nothing is being written
	timer *time.Timer
}

func newStallStream(w http.ResponseWriter, patience time.Duration) *stallStream {
	s := &stallStream{ResponseWriter: w, patience: patience}
	s.timer = time.AfterFunc(patience, s.resetIfDue)
	s.timer.Stop()
	return s
}

func (s *stallStream) Write(p []byte) (int, error) {
	s.begin()
	defer s.end()
	return s.ResponseWriter.Write(p)
}

// FlushError is what [http.ResponseController] looks for.
func (s *stallStream) FlushError() error {
	s.begin()
	defer s.end()
	return http.NewResponseController(s.ResponseWriter).Flush()
}

// Unwrap lets [http.ResponseController] find the other methods.
func (s *stallStream) Unwrap() http.ResponseWriter { return s.ResponseWriter }

func (s *stallStream) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.due = time.Now().Add(s.patience)
	s.timer.Reset(s.patience)
}

func (s *stallStream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.due = time.Time{}
	s.timer.Stop()
}

func (s *stallStream) resetIfDue() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.due.IsZero() && !time.Now().Before(s.due) {
		_ = http.NewResponseController(s.ResponseWriter).SetWriteDeadline(time.Unix(1, 0))
	}
}
