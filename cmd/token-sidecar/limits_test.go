package main

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestTheLimitsOfAClientAreSettings(t *testing.T) {
	for setting, test := range map[string]struct{ says, answer string }{
		"MAX_HEADER_BYTES=1024": {"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + strings.Repeat("x", 8<<10) + "\r\n\r\n", "HTTP/1.1 431 "},
		"HEADER_TIMEOUT=20ms":   {"GET / HTTP/1.1\r\nHost: local", ""},
		"IDLE_TIMEOUT=20ms":     {"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "HTTP/1.1 200 "},
		"STALL_TIMEOUT=20ms":    {"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nbegun", "HTTP/1.1 408 "},
		"ALLOWED_HOSTS=a, b":    {"GET / HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n", "HTTP/1.1 200 "},
		"LISTEN_ADDRESS=:8080":  {"GET / HTTP/1.1\r\nHost: 10.0.0.7:8080\r\nConnection: close\r\n\r\n", "HTTP/1.1 200 "},
		"LOG_LEVEL=info":        {"GET / HTTP/1.1\r\nHost: 10.0.0.7:8080\r\nConnection: close\r\n\r\n", "HTTP/1.1 421 "},
		"LOG_LEVEL=error":       {"GET / HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: cross-site\r\nConnection: close\r\n\r\n", "HTTP/1.1 403 "},
		"ALLOW_CROSS_SITE=true": {"GET / HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: cross-site\r\nConnection: close\r\n\r\n", "HTTP/1.1 200 "},
	} {
		t.Run(setting, func(t *testing.T) {
			r := runApp(t, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }, setting, "ALLOW_REMOTE_CLIENTS=true")
			_, from := r.dial(t, test.says)
			answer, err := io.ReadAll(from) // to the end that the sidecar makes
			if err != nil || !strings.HasPrefix(string(answer), test.answer) || test.answer == "" && len(answer) > 0 {
				t.Errorf("answered %q, %v, want %s", answer, err, test.answer)
			}
			r.stop()
			if err := <-r.done; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAnOptionsRequestForAllIsRefused(t *testing.T) {
	r := runApp(t, func(http.ResponseWriter, *http.Request) { t.Error("the upstream was asked") })
	_, from := r.dial(t, "OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
	if answer, err := io.ReadAll(from); err != nil || !strings.Contains(string(answer), "SIDECAR_TARGET_REFUSED") {
		t.Errorf("answered %q, %v", answer, err)
	}
	r.stop()
	if err := <-r.done; err != nil {
		t.Error(err)
	}
}
