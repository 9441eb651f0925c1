package granttest

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"time"
)

// Fault is one awkward answer to a token request. It may have grant, the
// honest handler, answer too: into w, or into a recorder so that the tokens
// rotate and the answer can be spoiled.
type Fault func(w http.ResponseWriter, r *http.Request, grant http.Handler)

// Script has the next token requests meet these faults in order, one each; nil
// is an honest answer. It replaces what is left of an earlier script.
func (s *Server) Script(faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script = slices.Clone(faults)
}

// Always has every token request that no script is left for meet f; nil, as at
// first, is an honest answer.
func (s *Server) Always(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.always = f
}

// SameToken is a Fault: it answers the latest pair again, with what remains of
// its life. While there is no live one it is honest.
func (s *Server) SameToken(w http.ResponseWriter, r *http.Request, grant http.Handler) {
	if answer := s.currentAnswer(time.Now()); answer != nil {
		writeAnswer(w, answer)
		return
	}
	grant.ServeHTTP(w, r)
}

func (s *Server) currentAnswer(now time.Time) map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.latest == nil || !s.latest.access.live(now) {
		return nil
	}
	return s.answer(now, s.latest)
}

// Status answers status with body, which is called JSON if it is.
func Status(status int, body string) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		if json.Valid([]byte(body)) {
			w.Header().Set("Content-Type", "application/json")
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// TooManyRequests answers 429. retryAfter is the value of Retry-After, seconds
// or an HTTP-date (RFC 9110 section 10.2.3); "" leaves the header out.
func TooManyRequests(retryAfter string) Fault {
	return busy(http.StatusTooManyRequests, retryAfter)
}

// Unavailable answers 503, with Retry-After as in [TooManyRequests].
func Unavailable(retryAfter string) Fault {
	return busy(http.StatusServiceUnavailable, retryAfter)
}

func busy(status int, retryAfter string) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		if retryAfter != "" {
			w.Header().Set("Retry-After", retryAfter)
		}
		writeJSON(w, status, map[string]any{"error": "temporarily_unavailable"})
	}
}

// OKWithError answers 200 with an error code in the body, as GitHub does.
func OKWithError(code string) Fault { return Answer(map[string]any{"error": code}) }

// Answer answers 200 with this JSON object, and issues nothing.
func Answer(object map[string]any) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { writeAnswer(w, object) }
}

// HTML answers status with a page for people.
func HTML(status int) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, "<!DOCTYPE html>\n<title>%d %s</title>\n<p>Please try again later.\n",
			status, http.StatusText(status))
	}
}

// Empty answers status without a body.
func Empty(status int) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.WriteHeader(status) }
}

// Redirect answers status with this Location, to see whether the client
// carries its secret there (RFC 9700 section 4.12).
func Redirect(status int, location string) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Location", location)
		w.WriteHeader(status)
	}
}

// EchoRequest answers status with all that the request had, secrets included,
// in error_description: it must not turn up in the client's log.
func EchoRequest(status int) Fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		body, _ := io.ReadAll(r.Body)
		writeJSON(w, status, map[string]any{
			"error":             "server_error",
			"error_description": "cannot handle: " + r.Header.Get("Authorization") + " " + string(body),
		})
	}
}

// Edited gives the honest answer, its JSON object changed by edit. Numbers are
// of type [json.Number].
func Edited(edit func(answer map[string]any)) Fault {
	return func(w http.ResponseWriter, r *http.Request, grant http.Handler) {
		honest := record(r, grant)
		answer := decode(honest)
		edit(answer)
		maps.Copy(w.Header(), honest.Header())
		writeJSON(w, honest.Code, answer)
	}
}

// FormEncoded gives the honest answer as application/x-www-form-urlencoded.
func FormEncoded(w http.ResponseWriter, r *http.Request, grant http.Handler) {
	honest := record(r, grant)
	values := url.Values{}
	for name, v := range decode(honest) {
		values.Set(name, fmt.Sprint(v))
	}
	maps.Copy(w.Header(), honest.Header())
	w.Header().Set("Content-Type", "application/x-www-form-urlencoded")
	w.WriteHeader(honest.Code)
	_, _ = io.WriteString(w, values.Encode())
}

// WrongDate gives the honest answer with this Date header.
func WrongDate(date time.Time) Fault {
	return func(w http.ResponseWriter, r *http.Request, grant http.Handler) {
		w.Header().Set("Date", date.UTC().Format(http.TimeFormat))
		grant.ServeHTTP(w, r)
	}
}

// Hang does not answer until the client leaves.
func Hang(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
	<-r.Context().Done()
	panic(http.ErrAbortHandler)
}

// Cut closes the connection without an answer, before anything is issued.
func Cut(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }

// LoseAnswer closes the connection without an answer, after the tokens rotated.
func LoseAnswer(_ http.ResponseWriter, r *http.Request, grant http.Handler) {
	record(r, grant)
	panic(http.ErrAbortHandler)
}

// Truncated closes the connection half way through the honest answer.
func Truncated(w http.ResponseWriter, r *http.Request, grant http.Handler) {
	body := writeHead(w, r, grant)
	_, _ = w.Write(body[:len(body)/2])
	flush(w)
	panic(http.ErrAbortHandler)
}

// Drip gives the head of the honest answer at once, then a byte of its body
// every interval, to the end or until the client leaves.
func Drip(interval time.Duration) Fault {
	return func(w http.ResponseWriter, r *http.Request, grant http.Handler) {
		body := writeHead(w, r, grant)
		for i := range body {
			flush(w)
			if !wait(r.Context(), interval) {
				panic(http.ErrAbortHandler)
			}
			_, _ = w.Write(body[i : i+1]) // the last goes out when the request is no more in flight
		}
	}
}

// Endless answers 200 with an access token that never ends, until the client leaves.
func Endless(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"access_token":"`)
	_, _ = io.Copy(w, filler{})
	panic(http.ErrAbortHandler)
}

// GzipBomb answers 200 with good JSON, compressed, whose access token is size bytes long.
func GzipBomb(size int64) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = io.WriteString(z, `{"token_type":"Bearer","expires_in":3600,"access_token":"`)
		_, _ = io.CopyN(z, filler{}, size)
		_, _ = io.WriteString(z, `"}`)
		_ = z.Close()
	}
}

// filler reads as the letter a, without end.
type filler struct{}

func (filler) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	return len(p), nil
}

// record lets the honest handler answer into the void.
func record(r *http.Request, grant http.Handler) *httptest.ResponseRecorder {
	honest := httptest.NewRecorder()
	grant.ServeHTTP(honest, r)
	return honest
}

func decode(honest *httptest.ResponseRecorder) map[string]any {
	var object map[string]any
	dec := json.NewDecoder(bytes.NewReader(honest.Body.Bytes()))
	dec.UseNumber() // an absolute expires_in would turn into 1.7e+09
	_ = dec.Decode(&object)
	return object
}

// writeHead gives the head of the honest answer and returns the body it promises.
func writeHead(w http.ResponseWriter, r *http.Request, grant http.Handler) []byte {
	honest := record(r, grant)
	maps.Copy(w.Header(), honest.Header())
	w.Header().Set("Content-Length", strconv.Itoa(honest.Body.Len()))
	w.WriteHeader(honest.Code)
	return honest.Body.Bytes()
}

func flush(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }
