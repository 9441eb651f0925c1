package main

import (
	"context"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// maxUntaken stands in for MAX_IN_FLIGHT where that is not limited.
	maxUntaken = 1000
	// untakenAfter is how long a client that takes its answers may be kept from
	// it, by a full machine rather than by its own will.
	untakenAfter = 100 * time.Millisecond
)

// untaken are the answers of HTTP/2 that clients have yet to take. Net/http
// keeps a stream and its goroutine for each, though no request is in flight
// any more, and a client need only not read on, or open no window. When there
// are too many, the connection that has the most of them is closed. Answers
// that net/http makes itself, to what is malformed, are not seen here.
type untaken struct {
	most int

	mu      sync.Mutex
	answers []ended // the oldest first; some may have been taken
}

// An ended answer is one whose handler has returned.
type ended struct {
	conn  net.Conn
	given time.Time
	taken <-chan bool // holds a value when the stream has ended
}

func newUntaken(maxInFlight int) *untaken {
	if maxInFlight == 0 {
		maxInFlight = maxUntaken
	}
	return &untaken{most: maxInFlight}
}

type connKey struct{}

// withConn is a [http.Server.ConnContext].
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

func connOf(r *http.Request) net.Conn { return r.Context().Value(connKey{}).(net.Conn) }

// limit must go around every handler that uses the request after the next one:
// it leaves nothing of it.
func (u *untaken) limit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s, ok := w.(stream); ok {
			defer u.await(s, r)
		}
		next.ServeHTTP(w, r)
	})
}

// await counts the answer that s has been given until it is taken. The
// request's context does not tell that: it is done when the handler is.
func (u *untaken) await(s stream, r *http.Request) {
	if most := u.add(ended{connOf(r), time.Now(), s.CloseNotify()}); most != nil {
		_ = most.Close() // its streams end soon after
	}
	forget(r)
}

// A stream writes an answer of HTTP/2, which a request for that version need not
// get: PRI * HTTP/2.0 may come in HTTP/1.1. For all other purposes than ours
// contexts have replaced [http.CloseNotifier].
type stream interface {
	http.Pusher
	CloseNotify() <-chan bool
}

// forget leaves of r what net/http still wants to know: whether it is a HEAD.
// It would keep the rest, up to MAX_HEADER_BYTES, with the answer.
func forget(r *http.Request) {
	method := ""
	if r.Method == http.MethodHead {
		method = http.MethodHead
	}
	*r = http.Request{Method: method}
}

// add returns the connection to close, if there are too many.
func (u *untaken) add(a ended) net.Conn {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.answers = append(u.answers, a)
	if len(u.answers) <= u.most {
		return nil
	}
	u.answers = slices.DeleteFunc(u.answers, func(a ended) bool { return len(a.taken) > 0 })
	if len(u.answers) <= u.most {
		return nil
	}
	return withMost(u.answers, time.Now().Add(-untakenAfter))
}

// withMost returns the connection to which most of the answers were given
// before then, if any was.
func withMost(answers []ended, then time.Time) (most net.Conn) {
	each := map[net.Conn]int{}
	for _, a := range answers {
		if a.given.After(then) {
			break
		}
		if each[a.conn]++; each[a.conn] > each[most] {
			most = a.conn
		}
	}
	return most
}
