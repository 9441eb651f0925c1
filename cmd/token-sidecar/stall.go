package main

import (
	"errors"
	"net"
	"os"
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
	return &stallConn{c, l.patience}, nil
}

type stallConn struct {
	net.Conn
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

// CloseWrite is what net/http looks for, to let a last answer arrive.
func (c *stallConn) CloseWrite() error {
	if tcp, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return tcp.CloseWrite()
	}
	return nil
}
