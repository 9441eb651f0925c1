package main

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// patienceForHalfClosed bounds how long a client that has closed its side may
// still be waiting for an answer to begin.
const patienceForHalfClosed = time.Minute

// A halfCloseListener serves clients that close their sending side after a
// request, as old ones do, and still want the answer. Net/http takes that for
// a client that has left, and cancels the request: while it is being served a
// read of one byte waits for exactly this. Here that read does not end before
// the request does. A client that has left altogether is found out when the
// answer cannot be written.
type halfCloseListener struct{ net.Listener }

func (l halfCloseListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &halfCloseConn{Conn: c, over: make(chan struct{})}, nil
}

type halfCloseConn struct {
	net.Conn
	mu   sync.Mutex
	over chan struct{} // closed when a waiting read is to end
}

func (c *halfCloseConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	over := c.over
	c.mu.Unlock()
	n, err := c.Conn.Read(p)
	if n > 0 || len(p) != 1 || !errors.Is(err, io.EOF) {
		return n, err
	}
	timer := time.NewTimer(patienceForHalfClosed)
	defer timer.Stop()
	select {
	case <-over:
		return 0, os.ErrDeadlineExceeded
	case <-timer.C:
		return 0, io.EOF
	}
}

// SetReadDeadline ends a waiting read if the deadline has passed, which is how
// net/http calls it back when the request is served.
func (c *halfCloseConn) SetReadDeadline(t time.Time) error {
	if !t.IsZero() && time.Until(t) <= 0 {
		c.end()
	}
	return c.Conn.SetReadDeadline(t)
}

func (c *halfCloseConn) Close() error {
	c.end()
	return c.Conn.Close()
}

func (c *halfCloseConn) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.over)
	c.over = make(chan struct{})
}

// CloseWrite is what net/http looks for, to let a last answer arrive.
func (c *halfCloseConn) CloseWrite() error {
	if tcp, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return tcp.CloseWrite()
	}
	return nil
}
