package main

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestTheLimitsOfAClientAreSettings(t *testing.T) {
	get := func(fields string) string { return "GET / HTTP/1.1\r\nConnection: close\r\n" + fields + "\r\n\r\n" }
	for _, test := range []struct{ setting, says, answer string }{
		{"MAX_HEADER_BYTES=1024", get("Host: localhost\r\nX-Long: " + strings.Repeat("x", 8<<10)), "HTTP/1.1 431 "},
		{"HEADER_TIMEOUT=20ms", "GET / HTTP/1.1\r\nHost: local", ""},
		{"IDLE_TIMEOUT=20ms", "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "HTTP/1.1 200 "},
		{"STALL_TIMEOUT=20ms", "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nbegun", "HTTP/1.1 408 "},
		{"", get("Host: 10.0.0.7:8080"), "HTTP/1.1 421 "},
		{"ALLOWED_HOSTS=a, b", get("Host: b"), "HTTP/1.1 200 "},
		{"LISTEN_ADDRESS=:8080", get("Host: 10.0.0.7:8080"), "HTTP/1.1 200 "},
		{"", get("Host: localhost\r\nSec-Fetch-Site: cross-site"), "HTTP/1.1 403 "},
		{"ALLOW_CROSS_SITE=true", get("Host: localhost\r\nSec-Fetch-Site: cross-site"), "HTTP/1.1 200 "},
		{"", get("Host: localhost\r\nX_Name: value"), "HTTP/1.1 400 "},
		{"ALLOW_UNDERSCORE_HEADERS=true", get("Host: localhost\r\nX_Name: value"), "HTTP/1.1 200 "},
		{"ALLOWED_METHODS=PUT", get("Host: localhost"), "HTTP/1.1 405 "},
		{"ALLOWED_PATHS=/orders", get("Host: localhost"), "HTTP/1.1 403 "},
	} {
		t.Run(test.setting, func(t *testing.T) {
			r := runApp(t, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }, test.setting, "ALLOW_REMOTE_CLIENTS=true")
			_, from := r.dial(t, test.says)
			answer, err := io.ReadAll(from) // to the end that the sidecar makes
			if err != nil || !strings.HasPrefix(string(answer), test.answer) || test.answer == "" && len(answer) > 0 {
				t.Errorf("answered %q, %v, want %s", answer, err, test.answer)
			}
			r.ends(t)
		})
	}
}

func TestAnOptionsRequestForAllIsRefused(t *testing.T) {
	r := runApp(t, func(http.ResponseWriter, *http.Request) { t.Error("the upstream was asked") })
	_, from := r.dial(t, "OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
	if answer, err := io.ReadAll(from); err != nil || !strings.Contains(string(answer), "SIDECAR_TARGET_REFUSED") {
		t.Errorf("answered %q, %v", answer, err)
	}
	r.ends(t)
}

func TestAClientThatTakesNothingOfAnEndlessAnswerIsCutOff(t *testing.T) {
	gone := make(chan struct{})
	r := runApp(t, func(w http.ResponseWriter, r *http.Request) {
		for err := error(nil); err == nil; {
			_, err = w.Write(make([]byte, 64<<10))
		}
		<-r.Context().Done()
		close(gone)
	}, "STALL_TIMEOUT=20ms")
	r.dial(t, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
	<-gone
	r.ends(t)
}

func TestTheLongestIdleIsClosedInTheWiredSidecar(t *testing.T) {
	r := runApp(t, func(http.ResponseWriter, *http.Request) {}, "MAX_CONNECTIONS=1", "IDLE_TIMEOUT=1h")
	conn, first := r.dial(t, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, second := r.dial(t, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
	for _, from := range []io.Reader{first, second} {
		if answer, err := io.ReadAll(from); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 ") {
			t.Errorf("answered %q, %v", answer, err)
		}
	}
	r.ends(t)
}
