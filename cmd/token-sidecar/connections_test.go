package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// A crowd is the clients of a server that has room for two of them.
type crowd struct {
	t       *testing.T
	network *granttest.Pipe
	server  *http.Server
	open    chan struct{} // lets requests to /slow end
}

// withCrowd runs test in a bubble of fake time.
func withCrowd(t *testing.T, test func(*crowd)) {
	synctest.Test(t, func(t *testing.T) {
		c := &crowd{t: t, network: granttest.NewPipe(), open: make(chan struct{})}
		mux := http.NewServeMux()
		mux.HandleFunc("/", func(http.ResponseWriter, *http.Request) {})
		mux.HandleFunc("/slow", func(http.ResponseWriter, *http.Request) { <-c.open })
		mux.HandleFunc("/tunnel", func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			<-c.open
		})
		both := &http.Protocols{}
		both.SetHTTP1(true)
		both.SetUnencryptedHTTP2(true)
		c.server = &http.Server{Handler: mux, Protocols: both}
		served := make(chan error)
		listener := newConnections(2, settled).limit(c.server, c.network)
		go func() { served <- c.server.Serve(listener) }()

		test(c)

		_ = c.server.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("the server ended with %v", err)
		}
	})
}

// A visitor is one client.
type visitor struct {
	*crowd
	net.Conn
	from *bufio.Reader
}

func (c *crowd) comes() *visitor {
	c.t.Helper()
	conn, err := c.network.Dial(context.Background(), "", "")
	if err != nil {
		c.t.Fatal(err)
	}
	return &visitor{c, conn, bufio.NewReader(conn)}
}

func (v *visitor) asks(path string) {
	_, _ = io.WriteString(v, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

// answered tells whether the visitor may stay.
func (v *visitor) answered() (stays bool) {
	v.t.Helper()
	resp, err := http.ReadResponse(v.from, nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		v.t.Fatalf("answered %v, %v", resp, err)
	}
	synctest.Wait()
	return !resp.Close
}

func (v *visitor) isServed() {
	v.t.Helper()
	v.asks("/")
	v.answered()
}

func (v *visitor) wasSentAway() bool {
	_ = v.SetReadDeadline(time.Now().Add(time.Nanosecond))
	_, err := v.from.Peek(1)
	_ = v.SetReadDeadline(time.Time{})
	return errors.Is(err, io.EOF)
}

func TestTheLongestIdleMakesRoom(t *testing.T) {
	withCrowd(t, func(c *crowd) {
		first, second := c.comes(), c.comes()
		first.isServed()
		second.isServed()
		time.Sleep(time.Millisecond)
		first.isServed() // so that second is idle for longer
		time.Sleep(time.Hour)
		if first.wasSentAway() || second.wasSentAway() {
			t.Fatal("a connection was closed although nobody came")
		}
		third := c.comes()
		third.isServed()
		if first.wasSentAway() || !second.wasSentAway() {
			t.Error("it was not the longest idle that was closed")
		}
		first.isServed()
	})
}

func TestConnectionsThatSayNothingMakeRoom(t *testing.T) {
	withCrowd(t, func(c *crowd) {
		start := time.Now()
		for range 20 {
			c.comes()
		}
		c.comes().isServed()
		// Two at a time, each of which gets its chance.
		if got, want := time.Since(start), 10*settled; got > want {
			t.Errorf("it took %v, want %v", got, want)
		}
	})
}

func TestWhoHasJustComeIsNotSentAway(t *testing.T) {
	withCrowd(t, func(c *crowd) {
		first, second := c.comes(), c.comes()
		third := c.comes()
		time.Sleep(settled - time.Millisecond)
		if first.wasSentAway() || second.wasSentAway() {
			t.Error("a connection was closed before it could be used")
		}
		third.isServed()
		if !first.wasSentAway() || second.wasSentAway() {
			t.Error("not exactly one made room")
		}
	})
}

func TestARequestInFlightIsNotCutOff(t *testing.T) {
	withCrowd(t, func(c *crowd) {
		first, second := c.comes(), c.comes()
		first.asks("/slow")
		second.asks("/slow")
		synctest.Wait()
		third := c.comes()
		go third.asks("/")
		time.Sleep(time.Hour)
		close(c.open)
		if !first.answered() || !second.answered() {
			t.Error("the answer ends a connection though nobody waited when its request came")
		}
		third.answered()
	})
}

func TestInACrowdEveryoneHasHisTurn(t *testing.T) {
	withCrowd(t, func(c *crowd) {
		first, second := c.comes(), c.comes()
		first.asks("/slow")
		second.isServed()
		third := c.comes()
		synctest.Wait()
		second.asks("/")
		if second.answered() {
			t.Error("a connection goes on although others wait")
		}
		third.isServed()
		close(c.open)
		first.answered()
	})
}

func TestATunnelCountsUntilItIsClosed(t *testing.T) {
	withCrowd(t, func(c *crowd) {
		first, second := c.comes(), c.comes()
		first.asks("/tunnel")
		second.asks("/tunnel")
		third := c.comes()
		go third.asks("/")
		time.Sleep(time.Hour)
		if first.wasSentAway() || second.wasSentAway() || third.from.Buffered() > 0 {
			t.Error("there was room for a third")
		}
		close(c.open)
		third.answered()
	})
}

func TestAServerEndsAlthoughSomeoneWaitsForRoom(t *testing.T) {
	withCrowd(t, func(c *crowd) {
		c.comes().asks("/slow")
		c.comes().asks("/slow")
		waits := c.comes()
		synctest.Wait()
		close(c.open)
		_ = c.server.Close()
		synctest.Wait()
		if !waits.wasSentAway() {
			t.Error("the one who waited still does")
		}
	})
}

// Whoever reaches a pod reaches its admin port, and must not cost it its probes.
func TestAProbeGetsThroughACrowdThatSaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := granttest.NewPipe()
		server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
		listener := newConnections(adminConnections, settledAdmin).limit(server, network)
		var served sync.WaitGroup
		served.Go(func() { _ = server.Serve(listener) })
		c := &crowd{t: t, network: network}
		for range 500 {
			served.Go(func() { _, _ = io.Copy(io.Discard, c.comes()) })
		}
		synctest.Wait()

		start := time.Now()
		probe := c.comes()
		probe.asks("/livez")
		if _, err := http.ReadResponse(probe.from, nil); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("answered after %v", took)
		}
		_ = server.Close()
		served.Wait()
	})
}
