package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// http2Visitor is a client of the crowd that speaks HTTP/2 on connections that
// it counts.
type http2Visitor struct {
	*http.Client
	dials atomic.Int32
}

func (c *crowd) comesWithHTTP2() *http2Visitor {
	v := &http2Visitor{}
	transport := speaksHTTP2(func(ctx context.Context, network, address string) (net.Conn, error) {
		v.dials.Add(1)
		return c.network.Dial(ctx, network, address)
	})
	v.Client = &http.Client{Transport: transport}
	return v
}

func (v *http2Visitor) isServed(t *testing.T) {
	t.Helper()
	resp, err := v.Get("http://app/")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("answered %v, %v", resp, err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	synctest.Wait()
}

// asksSlow has a request under way until the crowd is open, and then tells how
// it ended.
func (v *http2Visitor) asksSlow() (ended <-chan error) {
	slow := make(chan error)
	go func() {
		resp, err := v.Get("http://app/slow")
		if err == nil {
			_ = resp.Body.Close()
		}
		slow <- err
	}()
	synctest.Wait()
	return slow
}

func TestAConnectionIsInUseAsLongAsOneStreamIs(t *testing.T) {
	withCrowd(t, func(c *crowd) {
		first := c.comesWithHTTP2()
		defer first.CloseIdleConnections()
		slow := first.asksSlow()
		first.isServed(c.t) // another stream, which ends
		second := c.comes()
		second.isServed()
		time.Sleep(time.Hour)
		c.comes().isServed()
		if !second.wasSentAway() {
			c.t.Error("it was not the idle one that was sent away")
		}
		close(c.open)
		if err := <-slow; err != nil || first.dials.Load() != 1 {
			c.t.Errorf("the stream in use ended with %v, after %d connections", err, first.dials.Load())
		}
	})
}

// The frame that begins a stream may have been read when the connection was
// just told to leave.
func TestAConnectionThatIsUsedAfterAllDoesNotLeave(t *testing.T) {
	app, server := net.Pipe()
	c := newConnections(1, settled)
	c.open = 1
	it := &client{conn: conn{server}, connections: c}
	it.setIdle(true)
	it.since = it.since.Add(-settled)
	if _, entered := c.tryEnter(time.Now()); entered {
		t.Fatal("there was room")
	}
	it.setIdle(false)
	go func() { _, _ = app.Write([]byte("x")) }()
	if _, err := server.Read(make([]byte, 1)); err != nil {
		t.Errorf("the next frame: %v", err)
	}
}

func TestAnIdleConnectionOfHTTP2MakesRoom(t *testing.T) {
	withCrowd(t, func(c *crowd) {
		first := c.comesWithHTTP2()
		defer first.CloseIdleConnections()
		first.isServed(c.t)
		c.comes().isServed()
		time.Sleep(time.Hour)
		c.comes().isServed()
		synctest.Wait()
		first.isServed(c.t)
		if got := first.dials.Load(); got != 2 {
			c.t.Errorf("%d connections, want a second in place of the one that made room", got)
		}
	})
}

func TestInACrowdAConnectionOfHTTP2EndsWithItsStreams(t *testing.T) {
	withCrowd(t, func(c *crowd) {
		first, second := c.comesWithHTTP2(), c.comes()
		defer first.CloseIdleConnections()
		first.isServed(c.t)
		second.asks("/slow")
		slow := first.asksSlow()
		third := c.comes()
		synctest.Wait()
		first.isServed(c.t) // which tells it to leave
		close(c.open)
		if err := <-slow; err != nil {
			c.t.Errorf("the stream in flight ended with %v", err)
		}
		third.isServed()
		second.answered()
		if got := first.dials.Load(); got != 1 {
			c.t.Errorf("%d connections", got)
		}
	})
}
