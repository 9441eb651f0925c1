package main

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// A closedSide is a connection whose client sends nothing more.
type closedSide struct{ net.Conn }

func (closedSide) Read([]byte) (int, error)    { return 0, io.EOF }
func (closedSide) Write(p []byte) (int, error) { return len(p), nil }

func TestAClientThatHasLeftIsGivenUp(t *testing.T) {
	for writes := range 3 {
		synctest.Test(t, func(t *testing.T) {
			c := &halfCloseConn{conn: conn{closedSide{}}, over: make(chan struct{})}
			for i := range writes {
				time.AfterFunc(time.Duration(i+1)*(patienceForHalfClosed-time.Second), func() { _, _ = c.Write([]byte("more")) })
			}
			start := time.Now()
			if _, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("got %v", err)
			}
			if got, want := time.Since(start), time.Duration(writes+1)*patienceForHalfClosed; got != want {
				t.Errorf("given up after %v and %d writes, want %v", got, writes, want)
			}
		})
	}
}
