package main

import (
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"github.com/token-sidecar/token-sidecar/proxy"
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
	return mux
}

// ownPatience is how long a client of the admin or the debug port may take.
const ownPatience = 10 * time.Second

// newAdminServer serves each client once: few may be served at a time, and
// nobody asks more than once in a while.
func newAdminServer(cfg config, log *zap.Logger, h http.Handler) *http.Server {
	s := ownServer(cfg, log, h, cfg.adminGuard())
	s.WriteTimeout = ownPatience
	s.SetKeepAlivesEnabled(false)
	return s
}

// ownServer serves a port of the sidecar's own, where requests have no bodies.
// guard knows the names it is called by.
func ownServer(cfg config, log *zap.Logger, h http.Handler, guard proxy.Guard) *http.Server {
	return server(cfg, log, noBodies(noPages(guard, h)))
}

// A roomyListener lets a whole answer go out at once: a client that takes none
// of it keeps nobody else from a port that few may use at a time.
type roomyListener struct{ net.Listener }

func (l roomyListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetWriteBuffer(256 << 10)
	}
	return c, err
}

// noBodies has a server not wait for a body that a client has announced, which
// would keep everybody else from the port.
func noBodies(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// noPages refuses what comes from a web page: a browser on the same machine
// reaches loopback addresses, too. No page is served here, so none is of ours,
// and neither kubelet nor Prometheus sends these fields. A page whose own name
// leads here by DNS is known by that name.
func noPages(guard proxy.Guard, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		site := r.Header.Get("Sec-Fetch-Site")
		switch {
		case r.Header["Origin"] != nil || site == "cross-site" || site == "same-site":
			http.Error(w, "this port is not for web pages", http.StatusForbidden)
		case !guard.AllowsHost(r.Host):
			http.Error(w, "this port is not called by the name in Host: call it by its address or localhost, or the admin port by one of ALLOWED_HOSTS", http.StatusMisdirectedRequest)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// adminGuard knows the names of the admin port: any address, since a page
// cannot have one for its name, and its own names.
func (c *config) adminGuard() proxy.Guard {
	own, _, _ := net.SplitHostPort(c.AdminAddress)
	return proxy.Guard{Hosts: append([]string{"", own}, c.AllowedHosts...)}
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
