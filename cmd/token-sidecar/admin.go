package main

import (
	"fmt"
	"net/http"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// probes answers the kubelet.
type probes struct {
	tokens   tokens
	stopping atomic.Bool
	started  atomic.Bool // a first token has been held
}

type tokens interface {
	Ready() error
	Contested() bool
}

// adminHandler serves GET and HEAD; other methods get 405. quit, if not nil, is
// called by a POST.
func adminHandler(p *probes, reg *prometheus.Registry, quit func()) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", p.live)
	mux.HandleFunc("GET /readyz", p.ready)
	mux.HandleFunc("GET /startupz", p.startup)
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	if quit != nil {
		mux.HandleFunc("POST /quitquitquit", func(w http.ResponseWriter, _ *http.Request) {
			answer(w, nil)
			_ = http.NewResponseController(w).Flush() // or the end might come first
			quit()
		})
	}
	return noPages(mux)
}

// noPages refuses what comes from a web page: a browser on the same machine
// reaches loopback addresses, too. No page is served here, so none is of ours,
// and neither kubelet nor Prometheus sends these fields.
func noPages(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		site := r.Header.Get("Sec-Fetch-Site")
		if r.Header["Origin"] != nil || site == "cross-site" || site == "same-site" {
			http.Error(w, "this port is not for web pages", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// live does not depend on the token endpoint: a restart would not bring it back.
func (p *probes) live(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") }

func (p *probes) ready(w http.ResponseWriter, _ *http.Request) {
	err := p.tokens.Ready()
	if p.stopping.Load() {
		err = fmt.Errorf("shutting down")
	}
	answer(w, err)
	if p.tokens.Contested() {
		_, _ = fmt.Fprintln(w, "but tokens keep dying before their time: somebody else seems to use the same client")
	}
}

// startup passes from the first token on, so that containers started after
// this one find it able to serve.
func (p *probes) startup(w http.ResponseWriter, _ *http.Request) {
	if p.started.Load() {
		answer(w, nil)
		return
	}
	err := p.tokens.Ready()
	p.started.Store(err == nil)
	answer(w, err)
}

func answer(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = fmt.Fprintln(w, "not ready:", err)
		return
	}
	_, _ = fmt.Fprintln(w, "ok")
}
