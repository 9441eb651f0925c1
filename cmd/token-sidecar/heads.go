package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/token-sidecar/token-sidecar/proxy"
)

// maxFields is the most fields that the head of a request may have. Each costs
// more than two hundred bytes of memory, however short it is, and net/http
// bounds bytes alone. Servers take about a hundred (Apache, Tomcat, Envoy).
const maxFields = 128

// bufferSize is the size of the buffer by which net/http reads heads. A read for
// more than that is one of a body.
const bufferSize = 4 << 10

// lastRead is how long a client that is refused may go on sending.
const lastRead = 500 * time.Millisecond

var tooManyFields = fmt.Sprintf("The head has more than %d fields.", maxFields)

// prefaceHTTP2 is how a connection begins that speaks it (RFC 9113 section 3.4).
const prefaceHTTP2 = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// A head is what has been read of the head of a request.
type head struct {
	lines int  // that ended, but for the empty one
	begun bool // the line under way is not empty
}

// read takes note of p, and returns how much of that belongs to the head: all
// of it unless the head has ended. What net/http reads next is the next head.
func (h *head) read(p []byte) int {
	for at := 0; ; {
		length := bytes.IndexByte(p[at:], '\n')
		if length < 0 {
			h.begun = h.begun || notEmpty(p[at:])
			return len(p)
		}
		empty := !h.begun && !notEmpty(p[at:at+length])
		at += length + 1
		h.begun = false
		switch {
		case !empty:
			h.lines++
		default: // it ends a head, or is one of those that RFC 9112 section 2.2 has servers ignore
			h.lines = 0
			return at
		}
		if h.lines > maxFields+1 {
			return at
		}
	}
}

func notEmpty(line []byte) bool { return len(bytes.TrimLeft(line, "\r")) > 0 }

// Read counts the lines of heads. What comes behind a head is kept for the next
// Read, or net/http would have the next head before it could be counted.
func (it *client) Read(p []byte) (int, error) {
	n, err := it.readAhead(p)
	end := n
	switch {
	case it.http2:
	case it.heading.Load():
		end = it.head.read(p[:n])
		it.expectHTTP2(p[:end])
		if it.head.lines > maxFields+1 {
			it.refuse()
			return 0, io.EOF
		}
	case len(p) <= bufferSize:
		end = linesEnd(p[:n], maxFields)
	}
	if end < n {
		it.ahead = slices.Concat(p[end:n], it.ahead)
		err = nil // it will be there again
	}
	return end, err
}

// linesEnd is where the first lines of p end. A head may follow the body that
// p belongs to: this bounds how much of it escapes the count.
func linesEnd(p []byte, lines int) (end int) {
	if bytes.Count(p, []byte{'\n'}) <= lines {
		return len(p)
	}
	for range lines {
		end += bytes.IndexByte(p[end:], '\n') + 1
	}
	return end
}

// refuse answers in place of net/http. A close while bytes are on their way
// could cost the client the answer.
func (it *client) refuse() {
	_, _ = fmt.Fprintf(it.Conn, "HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n%s\n", tooManyFields)
	_ = it.CloseWrite()
	_ = it.SetReadDeadline(time.Now().Add(lastRead))
	_, _ = io.Copy(io.Discard, it.Conn)
}

// readAhead reads what was kept, or else what comes.
func (it *client) readAhead(p []byte) (int, error) {
	if len(it.ahead) == 0 {
		return it.Conn.Read(p)
	}
	n := copy(p, it.ahead)
	if it.ahead = it.ahead[n:]; len(it.ahead) == 0 {
		it.ahead = nil
	}
	return n, nil
}

// expectHTTP2 finds out by the first bytes that came whether there are heads at
// all: frames have a limit of their own.
func (it *client) expectHTTP2(p []byte) {
	n := min(len(p), len(it.preface))
	switch {
	case n == 0:
	case string(p[:n]) != it.preface[:n]:
		it.preface = ""
	default:
		it.preface = it.preface[n:]
		it.http2 = it.preface == ""
	}
}

// limitFields does for HTTP/2 what counting lines does for HTTP/1.1, and cuts off
// who announces too many trailers.
func limitFields(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			next.ServeHTTP(w, r)
			return
		}
		fields := 0
		for _, values := range r.Header {
			fields += len(values)
		}
		switch {
		case len(r.Trailer) > proxy.MaxTrailers: // net/http would keep all of them until a refusal is taken
			_ = connOf(r).Close()
			panic(http.ErrAbortHandler)
		case fields > maxFields:
			http.Error(w, tooManyFields, http.StatusRequestHeaderFieldsTooLarge)
			return
		}
		next.ServeHTTP(w, r)
	})
}
