package main

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A halfCloseListener serves clients that close their sending side after a
// request, as old ones do, and still want the answer. Net/http takes that for
// a client that has left, and cancels the request: while it is being served a
// read of one byte waits for exactly this. Here that read does not end before
// the request does. A client that has left altogether is found out when the
// answer cannot be written, or given up when nothing was to be written for so
// long: until then it holds the place of a request.
type halfCloseListener struct {
	net.Listener
	patience time.Duration // 0: for ever
}

func (l halfCloseListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &halfCloseConn{conn: conn{c}, patience: l.patience, over: make(chan struct{})}, nil
}

type halfCloseConn struct {
	conn
	patience time.Duration
	mu       sync.Mutex
	over     chan struct{} // closed when a waiting read is to end
	wrote    atomic.Bool   // since it began to wait
}

func (c *halfCloseConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	over := c.over
	c.mu.Unlock()
	n, err := c.Conn.Read(p)
	if n > 0 || len(p) != 1 || !errors.Is(err, io.EOF) {
		return n, err
	}
	for {
		c.wrote.Store(false)
		var late <-chan time.Time
		if c.patience > 0 {
			late = time.After(c.patience)
		}
		select {
		case <-over:
			return 0, os.ErrDeadlineExceeded
		case <-late:
			if !c.wrote.Load() {
				return 0, io.EOF
			}
		}
	}
}

func (c *halfCloseConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.wrote.Store(n > 0)
	return n, err
}

// SetReadDeadline ends a waiting read if the deadline has passed, which is how
// net/http calls it back when the request is served.
func (c *halfCloseConn) SetReadDeadline(t time.Time) error {
	err := c.Conn.SetReadDeadline(t) // first, or a read that begins in between would wait
	if !t.IsZero() && time.Until(t) <= 0 {
		c.end()
	}
	return err
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

// A conn adds CloseWrite to a connection. Net/http calls it before it closes
// one, so that a last answer is not lost to a reset.
type conn struct{ net.Conn }

func (c conn) CloseWrite() error {
	if tcp, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return tcp.CloseWrite()
	}
	return nil
}
