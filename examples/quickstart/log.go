package main

import (
	"bytes"
	"io"
	"sync"
)

// heldLog keeps what is written to it until it is told where to put it, so
// that the sidecar's log does not talk into the introduction.
type heldLog struct {
	mu   sync.Mutex
	held bytes.Buffer
	out  io.Writer // nil: held
}

func (l *heldLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.out == nil {
		return l.held.Write(p)
	}
	return l.out.Write(p)
}

func (l *heldLog) release(out io.Writer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = l.held.WriteTo(out)
	l.out = out
}
