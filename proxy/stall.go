package proxy

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// A clientBody gives up on a client that sends nothing of its body for too
// long. Once there is an answer the client may take its time: what goes both
// ways at once is a conversation.
type clientBody struct {
	io.ReadCloser
	client   http.ResponseWriter
	patience time.Duration
	// ownDeadline says that a deadline is of this body alone, as in HTTP/2.
	ownDeadline bool
	reading     sync.Mutex // held while it is read

	mu          sync.Mutex
	deadline    time.Time // of the connection, or of the body
	waiting     bool      // for the client, until the deadline
	unhurried   bool      // there is no deadline: there is an answer, or no more to come
	ended       bool      // there is no more to come
	closed      bool      // it is the server's again
	interrupted bool
}

func (b *clientBody) Read(p []byte) (int, error) {
	b.reading.Lock()
	defer b.reading.Unlock()
	if !b.beginWait() {
		return 0, errClosed
	}
	n, err := b.ReadCloser.Read(p)
	switch {
	case err == nil:
		b.endWait()
	case errors.Is(err, io.EOF):
		b.liftDeadline(true)
	case b.isClosed():
		return n, errClosed
	}
	return n, err
}

func (b *clientBody) isClosed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closed
}

// interrupt ends a read for which somebody waits who has no use for it. The
// server takes that for a client that has left, unless the deadline is the
// body's own.
func (b *clientBody) interrupt() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.closed, b.interrupted = true, true
		b.setDeadline(longAgo)
	}
}

func (b *clientBody) wasInterrupted() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.interrupted
}

// beginWait begins a wait for the client, unless it is too late to read. To set a
// deadline costs more than most reads, so it is a quarter too late, and then
// good for several of them.
func (b *clientBody) beginWait() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.unhurried && !b.closed {
		b.waiting = true
		if now := time.Now(); b.deadline.Sub(now) < b.patience {
			b.deadline = now.Add(b.patience + b.patience/4)
			b.setDeadline(b.deadline)
		}
	}
	return !b.closed
}

// endWait ends a wait that was worth it.
func (b *clientBody) endWait() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting = false
}

// liftDeadline says that there is an answer, or that there is no more to come. In
// that case the server goes on to read, to find out whether the client leaves.
func (b *clientBody) liftDeadline(ended bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed && !b.ended {
		b.setDeadline(time.Time{})
	}
	b.waiting, b.unhurried, b.ended = false, true, b.ended || ended
}

// stalled reports whether patience has ended. The server takes that for a
// client that has left, and cancels the request before the reader is told.
func (b *clientBody) stalled() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.stalledLocked()
}

func (b *clientBody) stalledLocked() bool { return b.waiting && !time.Now().Before(b.deadline) }

// handBack leaves the rest to the server. That reads a good deal of it even if
// the connection will be closed, and would wait for it without end. If it found
// a reader it would send him away, and our deadline with him.
func (b *clientBody) handBack() {
	if b.finish() {
		return
	}
	b.setDeadline(longAgo)
	b.reading.Lock()
	defer b.reading.Unlock()
	if b.patience > 0 {
		b.setDeadline(time.Now().Add(b.patience))
	} else {
		b.setDeadline(time.Time{})
	}
}

var longAgo = time.Unix(1, 0)

// finish lets nobody read any more, and reports whether there is nothing left
// to read, or nothing left to wait for.
func (b *clientBody) finish() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return b.ended || b.stalledLocked()
}

func (b *clientBody) setDeadline(t time.Time) {
	_ = http.NewResponseController(b.client).SetReadDeadline(t)
}
