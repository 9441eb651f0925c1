package proxy

import (
	"context"
	"sync"
)

// InFlight counts requests on their way. Its zero value is ready for use.
type InFlight struct {
	mu    sync.Mutex
	count int
	none  chan struct{} // closed when count comes to 0; nil: nobody waits
}

// Add changes the count by n.
func (f *InFlight) Add(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count += n
	if f.count == 0 && f.none != nil {
		close(f.none)
		f.none = nil
	}
}

// Wait returns when there are none, or ctx is done.
func (f *InFlight) Wait(ctx context.Context) {
	f.mu.Lock()
	if f.count == 0 {
		f.mu.Unlock()
		return
	}
	if f.none == nil {
		f.none = make(chan struct{})
	}
	none := f.none
	f.mu.Unlock()
	select {
	case <-none:
	case <-ctx.Done():
	}
}
