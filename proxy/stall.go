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
	reading  sync.Mutex // held while it is read

	mu    sync.Mutex
	due   time.Time // when patience ends; zero: never
	calm  bool      // there is an answer, or no more to come
	ended bool      // there is no more to come
	over  bool      // it is the server's again
}

func (b *clientBody) Read(p []byte) (int, error) {
	b.reading.Lock()
	defer b.reading.Unlock()
	if !b.hurry() {
		return 0, errClosed
	}
	n, err := b.ReadCloser.Read(p)
	switch {
	case err == nil:
		b.thank()
	case errors.Is(err, io.EOF):
		b.relax(true)
	}
	return n, err
}

// hurry begins a term of patience, unless it is too late to read.
func (b *clientBody) hurry() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.calm && !b.over {
		b.due = time.Now().Add(b.patience)
		b.setDeadline(b.due)
	}
	return !b.over
}

// thank ends a term of patience in time.
func (b *clientBody) thank() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.due = time.Time{}
}

// relax says that there is an answer, or that there is no more to come. In
// that case the server goes on to read, to find out whether the client leaves.
func (b *clientBody) relax(ended bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.over && !b.ended {
		b.setDeadline(time.Time{})
	}
	b.due, b.calm, b.ended = time.Time{}, true, b.ended || ended
}

// stalled reports whether patience has ended. The server takes that for a
// client that has left, and cancels the request before the reader is told.
func (b *clientBody) stalled() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.stalledLocked()
}

func (b *clientBody) stalledLocked() bool { return !b.due.IsZero() && !time.Now().Before(b.due) }

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
	b.setDeadline(time.Now().Add(b.patience))
}

var longAgo = time.Unix(1, 0)

// finish lets nobody read any more, and reports whether there is nothing left
// to read, or nothing left to wait for.
func (b *clientBody) finish() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
	return b.ended || b.stalledLocked()
}

func (b *clientBody) setDeadline(t time.Time) {
	_ = http.NewResponseController(b.client).SetReadDeadline(t)
}
