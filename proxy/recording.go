package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// recordLimit is the most that is kept of a body so that it can be sent
	// again.
	recordLimit = 64 << 10
	// recordBudget is the most that is kept of all bodies in flight, or less
	// where there may be few: recordShare for each.
	recordBudget = 8 << 20
	recordShare  = 32 << 10
	// rewindPatience bounds the wait for the first sending to let go of the
	// body. It has to, unless the client is slow with the next piece of it.
	rewindPatience = time.Second
)

// A recording is a request's body that can be sent a second time: what has
// been read of it is kept, and what has not is still there to be read.
type recording struct {
	source *requestBody
	budget *atomic.Int64 // what is left of recordBudget
	// tooLong says from the outset that it cannot be kept, mayBeLost that it
	// perhaps cannot.
	tooLong, mayBeLost bool
	size               int // 0: not known

	// turn is a lock that can be waited for: it holds a value while somebody
	// reads source, which may take long, or uses the fields below.
	turn    chan struct{}
	kept    []byte
	taken   int   // bytes read of source
	err     error // of source, io.EOF above all
	lost    bool  // there was more than could be kept
	sending *playback

	done atomic.Bool // sending is the last
}

// record returns a recording of a body of that length, -1 if it is not known.
func record(source *requestBody, length int64, budget *atomic.Int64) *recording {
	r := &recording{source: source, budget: budget, turn: make(chan struct{}, 1)}
	r.tooLong, r.mayBeLost = length > recordLimit, length > recordLimit || length < 0
	if r.lost = r.tooLong; !r.mayBeLost {
		r.size = int(length)
	}
	return r
}

// play returns a reader of the whole body, for the first sending.
func (r *recording) play() *playback {
	r.sending = &playback{recording: r}
	return r.sending
}

// replay returns a reader of the whole body and the trailers that will follow
// it, for the second sending, after rewind. The first is closed by it; what
// has it open still may go on to use its own trailers.
func (r *recording) replay() (io.ReadCloser, http.Header) {
	r.turn <- struct{}{}
	defer r.yield()
	r.sending.closed.Store(true)
	r.source.out = maps.Clone(r.source.out)
	return r.play(), r.source.out
}

// rewind waits until nobody reads, and reports whether the body can be played
// again from its beginning.
func (r *recording) rewind(ctx context.Context) bool {
	timer := time.NewTimer(rewindPatience)
	defer timer.Stop()
	select {
	case r.turn <- struct{}{}:
		defer r.yield()
		return !r.lost
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// forget says that there will be no further sending.
func (r *recording) forget() {
	r.done.Store(true)
	r.sending.interrupt()
	r.releaseIfFree()
}

// releaseIfFree lets go of what is kept once nobody needs it, unless somebody
// is reading, who calls it in turn when he has finished.
func (r *recording) releaseIfFree() {
	select {
	case r.turn <- struct{}{}:
		if r.sending.closed.Load() || r.sending.offset >= len(r.kept) {
			r.release()
		}
		<-r.turn
	default:
	}
}

func (r *recording) yield() {
	<-r.turn
	if r.done.Load() {
		r.releaseIfFree()
	}
}

// readLocked reads the next piece of source. The caller has the turn.
func (r *recording) readLocked(p []byte) (int, error) {
	n, err := r.source.Read(p)
	r.err, r.taken = err, r.taken+n
	switch {
	case r.lost || r.done.Load():
	case r.taken > recordLimit:
		r.lose()
	case r.taken <= cap(r.kept) || r.grow(max(r.taken, r.size)):
		r.kept = append(r.kept, p[:n]...)
	}
	return n, err
}

// grow makes room to keep that many bytes, or gives up keeping any if the
// budget does not allow it. The caller has the turn.
func (r *recording) grow(least int) bool {
	larger := allocate(least)
	if r.budget.Add(-int64(cap(larger))) < 0 {
		r.budget.Add(int64(cap(larger)))
		free(larger)
		r.lose()
		return false
	}
	larger = append(larger, r.kept...)
	r.release()
	r.kept = larger
	return true
}

func (r *recording) lose() {
	r.lost = true
	r.release()
}

// release gives back what is kept. The caller has the turn.
func (r *recording) release() {
	if r.kept != nil {
		r.budget.Add(int64(cap(r.kept)))
		free(r.kept)
		r.kept = nil
	}
}

// A playback is one sending of a recording.
type playback struct {
	*recording
	offset  int
	closed  atomic.Bool
	reading atomic.Bool // the source
	sent    atomic.Bool // there is an answer, or none to come
	conn    *upstreamConn
}

var (
	errClosed    = errors.New("read from a closed request body")
	errForgotten = errors.New("the request body was not kept")
)

func (p *playback) Read(b []byte) (int, error) {
	p.turn <- struct{}{}
	defer p.yield()
	var n int
	var err error
	switch {
	case p.closed.Load():
		return 0, errClosed
	case p.offset < len(p.kept):
		n = copy(b, p.kept[p.offset:])
	case p.offset < p.taken:
		return 0, errForgotten
	case p.err != nil:
		return 0, p.err
	default:
		p.reading.Store(true)
		n, err = p.readLocked(b)
		p.reading.Store(false)
	}
	p.offset += n
	return n, err
}

// Close ends this sending. The source, which is the server's, stays open.
func (p *playback) Close() error {
	p.closed.Store(true)
	if p.done.Load() {
		p.interrupt()
		p.releaseIfFree()
	} else if p.reading.Load() {
		time.AfterFunc(rewindPatience, p.interrupt)
	}
	return nil
}

// follow ties p to the connection that it will be sent on. ReverseProxy traces
// its requests, and would have a second trace called by way of reflection.
func (p *playback) follow(ctx context.Context) {
	if trace := httptrace.ContextClientTrace(ctx); trace != nil {
		trace.GotConn = p.sentOn
	}
}

func (p *playback) sentOn(got httptrace.GotConnInfo) {
	conn := got.Conn
	if secure, ok := conn.(*tls.Conn); ok {
		if secure.ConnectionState().NegotiatedProtocol == "h2" {
			return
		}
		conn = secure.NetConn()
	}
	if p.conn, _ = conn.(*upstreamConn); p.conn != nil {
		p.conn.carry(p)
	}
}

// answered says that there is an answer, or none to come.
func (p *playback) answered() {
	p.sent.Store(true)
	if p.conn != nil {
		p.conn.sending.CompareAndSwap(p, nil)
	}
}

// interrupt ends a read that waits for the client although the upstream has
// gone, or wants no more: the transport waits for it before it says so. While
// it is open whether there will be another sending that is left to rewind; and
// in HTTP/1.1 it would be the end of an answer.
func (p *playback) interrupt() {
	client, sent := p.source.client, p.sent.Load()
	if client != nil && p.closed.Load() && p.reading.Load() && (!sent || client.ownDeadline && p.done.Load()) {
		client.interrupt()
	}
}

// Most bodies are small: what is kept comes in three sizes.
var sizes = [...]struct {
	bytes int
	pool  *sync.Pool
}{{4 << 10, &sync.Pool{}}, {16 << 10, &sync.Pool{}}, {recordLimit, &sync.Pool{}}}

// allocate returns an empty slice with room for at least that many bytes,
// recordLimit at most.
func allocate(least int) []byte {
	i := 0
	for sizes[i].bytes < least {
		i++
	}
	if b, ok := sizes[i].pool.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, 0, sizes[i].bytes)
}

func free(b []byte) {
	for _, size := range sizes {
		if size.bytes == cap(b) {
			b = b[:0]
			size.pool.Put(&b)
		}
	}
}
