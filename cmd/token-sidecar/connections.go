package main

import (
	"container/list"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// How long a connection must have been silent before it may be taken for idle.
// Until then its next request may be on the way, or read only when this process
// gets a processor again.
const (
	// It is well below what Retry-After says, so that nobody who comes back then
	// meets a closing connection.
	settled = 500 * time.Millisecond
	// Who probes sends his request at once, which must be read although the
	// processor is busy; and he must get through whoever else connects to the port.
	settledAdmin = 5 * time.Millisecond
)

// connections keeps a server to so many clients. Who comes when there are as
// many takes the place of the one that has been idle longest; while none is
// idle he waits, and those behind him in the kernel's queue, and answers end
// their connections so that everyone has his turn.
type connections struct {
	max     int // 0: no limit
	settled time.Duration
	crowded atomic.Bool

	mu      sync.Mutex
	open    int
	idle    list.List     // of *client, the longest idle first
	leaving time.Time     // when one was sent away that has not gone yet
	changed chan struct{} // holds a value after a connection was closed or fell idle
}

func newConnections(limit int, settled time.Duration) *connections {
	return &connections{max: limit, settled: settled, changed: make(chan struct{}, 1)}
}

// limit prepares s, which must not serve yet, and returns the listener to
// serve on instead of l.
func (c *connections) limit(s *http.Server, l net.Listener) net.Listener {
	preface := ""
	if s.Protocols != nil && s.Protocols.UnencryptedHTTP2() {
		preface = prefaceHTTP2
	}
	s.ConnState = note
	s.Handler = c.takeTurns(s.Handler)
	return &limitedListener{Listener: l, connections: c, preface: preface, closed: make(chan struct{})}
}

func (c *connections) takeTurns(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c.crowded.Load() && r.Header["Upgrade"] == nil {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// A limitedListener accepts connections within the limit.
type limitedListener struct {
	net.Listener
	connections *connections
	preface     string // of HTTP/2, if that may be spoken
	once        sync.Once
	closed      chan struct{}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if !l.connections.enter(l.closed) {
		_ = c.Close()
		return nil, net.ErrClosed
	}
	return &client{conn: conn{c}, connections: l.connections, preface: l.preface}, nil
}

func (l *limitedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// enter waits for room and takes it, unless closed comes first.
func (c *connections) enter(closed <-chan struct{}) bool {
	defer c.crowded.Store(false)
	for {
		again, entered := c.tryEnter(time.Now())
		if entered {
			runtime.Gosched() // those who are in have precedence
			return true
		}
		c.crowded.Store(true)
		select {
		case <-c.changed:
		case <-time.After(again):
		case <-closed:
			return false
		}
	}
}

// tryEnter takes room if there is any. Otherwise it sends the longest idle
// away, or tells when that is due.
func (c *connections) tryEnter(now time.Time) (again time.Duration, entered bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open < c.max || c.max == 0 {
		c.open++
		c.leaving = time.Time{}
		return 0, true
	}
	longest := c.idle.Front()
	if longest == nil {
		return time.Minute, false // changed comes first
	}
	it := longest.Value.(*client)
	if early := c.settled - min(now.Sub(it.since), now.Sub(c.leaving)); early > 0 {
		return early, false
	}
	// The server closes it, unless a request has just been read after all.
	_ = it.SetReadDeadline(now)
	it.since, c.leaving = now, now
	c.idle.MoveToBack(longest)
	return c.settled, false
}

// A client is a connection that counts, and whose heads are counted.
type client struct {
	conn
	connections *connections
	once        sync.Once

	heading atomic.Bool // a head is read, or awaited; the rest is the reader's
	head    head
	ahead   []byte // what came behind a head
	preface string // what of it may still come
	http2   bool

	place *list.Element // in connections.idle, nil while in use; guarded by connections.mu
	since time.Time     // when it came to that place
}

// note is told of the states of connections. Those that have not sent a whole
// head yet count as idle, too.
func note(c net.Conn, state http.ConnState) {
	if it, ok := c.(*client); ok {
		idle := state == http.StateNew || state == http.StateIdle
		it.heading.Store(idle)
		it.setIdle(idle)
	}
}

func (it *client) setIdle(idle bool) {
	c := it.connections
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case idle && it.place == nil:
		it.since, it.place = time.Now(), c.idle.PushBack(it)
		c.signal()
	case !idle && it.place != nil:
		c.idle.Remove(it.place)
		it.place = nil
		if it.since.Equal(c.leaving) { // it is not leaving after all: HTTP/2 sets no deadlines of its own
			_ = it.SetReadDeadline(time.Time{})
		}
	}
}

func (c *connections) signal() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// Close is called by the server, or by who took the connection over from it.
func (it *client) Close() error {
	err := it.Conn.Close()
	it.once.Do(func() {
		it.setIdle(false)
		c := it.connections
		c.mu.Lock()
		defer c.mu.Unlock()
		c.open--
		c.signal()
	})
	return err
}
