package proxy

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// A clientBody gives up on a client that sends nothing of its body for too
// long. Once there is an answer the client may take its time: what goes both
// ways at once is a conversation.
type clientBody struct {
	io.ReadCloser
	client   http.ResponseWriter
	patience time.Duration
	start    time.Time
	due      atomic.Int64 // when patience ends, since start; 0: never
	answered atomic.Bool
}

func (b *clientBody) Read(p []byte) (int, error) {
	if !b.answered.Load() {
		b.hurry()
		if b.answered.Load() { // only now, perhaps
			b.relax()
		}
	}
	n, err := b.ReadCloser.Read(p)
	switch {
	case err == nil:
		b.due.Store(0)
	case errors.Is(err, io.EOF):
		b.relax() // the server goes on to read, to find out whether the client leaves
	}
	return n, err
}

func (b *clientBody) hurry() {
	now := time.Now()
	b.due.Store(int64(now.Sub(b.start) + b.patience))
	b.setDeadline(now.Add(b.patience))
}

func (b *clientBody) relax() {
	b.due.Store(0)
	b.setDeadline(time.Time{})
}

func (b *clientBody) setDeadline(t time.Time) {
	_ = http.NewResponseController(b.client).SetReadDeadline(t)
}

// hasAnswer says that there is an answer.
func (b *clientBody) hasAnswer() {
	b.answered.Store(true)
	b.relax()
}

// stalled reports whether patience has ended. The server takes that for a
// client that has left, and cancels the request before the reader is told.
func (b *clientBody) stalled() bool {
	due := b.due.Load()
	return due > 0 && int64(time.Since(b.start)) >= due
}
