package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// ready is a source of tokens that has one.
type ready struct{}

func (ready) Ready() error    { return nil }
func (ready) Contested() bool { return false }

// ask returns the status of an answer of the admin port, and the methods that
// it says are allowed.
func ask(t *testing.T, h http.Handler, method, path string, fields ...string) string {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, nil)
	for i := 0; i < len(fields); i += 2 {
		r.Header.Set(fields[i], fields[i+1])
	}
	if host := r.Header.Get("Host"); host != "" {
		r.Host = host
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return strings.TrimSpace(fmt.Sprint(w.Code, " ", w.Header().Get("Allow")))
}

func TestTheAdminPortIsReadOnly(t *testing.T) {
	h := adminHandler(&probes{tokens: ready{}}, prometheus.NewRegistry(), nil)
	for _, path := range []string{"/livez", "/readyz", "/startupz", "/metrics"} {
		for _, method := range []string{"GET", "HEAD"} {
			if got := ask(t, h, method, path); got != "200" {
				t.Errorf("%s %s: %s", method, path, got)
			}
		}
		for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get"} {
			if got, want := ask(t, h, method, path), "405 GET, HEAD"; got != want {
				t.Errorf("%s %s: %s, want %s", method, path, got, want)
			}
		}
	}
	for _, path := range []string{"/", "/quitquitquit", "/debug/pprof/", "/debug/vars", "/token", "/config"} {
		for _, method := range []string{"GET", "POST"} {
			if got := ask(t, h, method, path); got != "404" {
				t.Errorf("%s %s: %s", method, path, got)
			}
		}
	}
}

func TestTheAdminPortIsNotForWebPages(t *testing.T) {
	quits := 0
	h := adminHandler(&probes{tokens: ready{}}, prometheus.NewRegistry(), func() { quits++ })
	for _, test := range []struct{ method, path, field, value, want string }{
		{"GET", "/livez", "Host", "10.0.0.7:9090", "200"}, // as the kubelet asks
		{"GET", "/metrics", "Host", "sidecar.ns.svc:9090", "200"},
		{"GET", "/metrics", "Sec-Fetch-Site", "none", "200"}, // typed in by hand
		{"GET", "/metrics", "Sec-Fetch-Site", "cross-site", "403"},
		{"GET", "/metrics", "Sec-Fetch-Site", "same-site", "403"},
		{"GET", "/metrics", "Origin", "https://attacker.test", "403"},
		{"GET", "/metrics", "Origin", "null", "403"},
		{"POST", "/quitquitquit", "Origin", "http://attacker.test:9090", "403"}, // whose name leads here, too
		{"POST", "/quitquitquit", "Sec-Fetch-Site", "cross-site", "403"},
		{"GET", "/quitquitquit", "Host", "localhost", "405 POST"},
	} {
		if got := ask(t, h, test.method, test.path, test.field, test.value); got != test.want {
			t.Errorf("%s %s with %s %s: %s, want %s", test.method, test.path, test.field, test.value, got, test.want)
		}
	}
	if quits > 0 {
		t.Error("a web page has ended the sidecar")
	}
	if got := ask(t, h, "POST", "/quitquitquit"); got != "200" || quits != 1 {
		t.Errorf("answered %s, ended %d times", got, quits)
	}
}
