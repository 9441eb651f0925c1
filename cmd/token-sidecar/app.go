package main

import (
	"context"
	"log"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.uber.org/zap"

	"github.com/token-sidecar/token-sidecar/metrics"
	"github.com/token-sidecar/token-sidecar/proxy"
	"github.com/token-sidecar/token-sidecar/tokencache"
	"github.com/token-sidecar/token-sidecar/tokencache/grant"
)

// app is the whole sidecar but for its sockets.
type app struct {
	cfg     config                 // as it was at the start
	current atomic.Pointer[config] // with what files hold now: see watchFiles
	log     *zap.Logger
	secret  *secretFile // nil: the secret is not in a file
	cache   *tokencache.Cache

	toTokens, toUpstream *leg

	proxy *http.Server
	admin *http.Server
	probe *probes

	inFlight     proxy.InFlight // requests, and the tunnels that some become
	unrepeatable proxy.InFlight // see proxy.Config
	cutOff       context.CancelFunc
	quit         chan struct{} // closed when the admin port is told to
}

// newApp wires the sidecar. adapt, if not nil, may change the transports to
// the token endpoint and to the upstream.
func newApp(cfg config, log *zap.Logger, adapt func(*http.Transport)) *app {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m := metrics.New(reg, runningVersion())
	m.Expect(labels)

	if adapt == nil {
		adapt = func(*http.Transport) {}
	}
	a := &app{cfg: cfg, log: log, quit: make(chan struct{})}
	a.current.Store(&cfg)
	if cfg.ClientSecretFile != "" {
		a.secret = &secretFile{path: cfg.ClientSecretFile}
	}
	a.toTokens, a.toUpstream = a.newLegs(adapt)
	a.cache = a.newCache(m)
	a.proxy = a.newProxyServer(m)
	a.probe = &probes{tokens: a.cache}
	a.admin = newAdminServer(cfg, log, adminHandler(a.probe, reg, a.onQuit()))
	return a
}

func (a *app) newLegs(adapt func(*http.Transport)) (toTokens, toUpstream *leg) {
	cfg := a.cfg
	tokenProxy := a.proxyNow(func(c *config) proxyURL { return c.TokenProxyURL })
	toTokens = newLeg(cfg.tokenTLS(), func() *http.Transport {
		transport := grant.NewTransport(tokenProxy)
		adapt(transport)
		return transport
	})
	upstreamProxy := a.proxyNow(func(c *config) proxyURL { return c.UpstreamProxyURL })
	toUpstream = newLeg(cfg.upstreamTLS(), func() *http.Transport {
		transport := proxy.NewTransport(proxy.TransportConfig{
			ConnectTimeout:  cfg.UpstreamConnectTimeout,
			ResponseTimeout: cfg.UpstreamResponseTimeout,
			IdleTimeout:     cfg.UpstreamIdleTimeout,
			MaxConns:        cfg.MaxInFlight,
			PlainHTTP2:      cfg.UpstreamHTTP2,
			Proxy:           upstreamProxy,
		})
		adapt(transport)
		return transport
	})
	return toTokens, toUpstream
}

func (a *app) newCache(m *metrics.Metrics) *tokencache.Cache {
	cfg, client := a.cfg, a.newClient(m)
	cache := tokencache.Config{
		Grants:        grant.WithBreaker(client, m.BreakerChanged),
		Wait:          cfg.TokenWait,
		Window:        cfg.RefreshWindow,
		Leeway:        cfg.ExpiryLeeway,
		MinInterval:   cfg.MinRefreshInterval,
		Hold:          time.Second,
		Quiet:         a.unrepeatable.Wait,
		FullGrantOnly: cfg.Rotation == rotationOverlap,
		Log:           a.log,
		Recorder:      m,
	}
	if cfg.RevocationURL.URL != nil {
		cache.Revoke = client.Revoke
	}
	return tokencache.New(cache)
}

func (a *app) newProxyServer(m *metrics.Metrics) *http.Server {
	cfg := a.cfg
	viaProxy := cfg.UpstreamProxyURL.proxy != nil
	var transport http.RoundTripper = a.toUpstream
	if viaProxy && cfg.UpstreamURL.Scheme == "http" {
		transport = proxied{transport, proxy.OncePerMinute(a.log)}
	}
	s := server(cfg, a.log, a.counted(proxy.New(proxy.Config{
		Upstream:     cfg.UpstreamURL.URL,
		Tokens:       a.cache,
		Transport:    transport,
		ViaProxy:     viaProxy,
		Unrepeatable: &a.unrepeatable,
		MaxInFlight:  cfg.MaxInFlight,
		Guard:        cfg.guard(),
		BodyPatience: cfg.StallTimeout,
		Log:          a.log,
		Recorder:     m,
	})))
	if cfg.ListenHTTP2 {
		enableHTTP2(s, cfg)
	}
	var requests context.Context
	requests, a.cutOff = context.WithCancel(context.Background())
	s.BaseContext = func(net.Listener) context.Context { return requests }
	return s
}

// labels are what the rooms may report, which only here know each other.
var labels = metrics.Labels{
	RefreshReasons: grant.Reasons, AnomalyKinds: grant.AnomalyKinds, RequestReasons: proxy.Reasons, RefusalOutcomes: proxy.Outcomes,
}

func (a *app) counted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.inFlight.Add(1)
		defer a.inFlight.Add(-1)
		next.ServeHTTP(w, r)
	})
}

func (a *app) newClient(rec grant.Recorder) *grant.Client {
	cfg := a.cfg
	secret := func() (tokencache.Secret, error) { return cfg.ClientSecret, nil }
	if a.secret != nil {
		secret = a.secret.read
	}
	return grant.New(grant.Config{
		TokenURL:           cfg.TokenURL.URL,
		RefreshURL:         cfg.RefreshURL.URL,
		RevocationURL:      cfg.RevocationURL.URL,
		ClientID:           cfg.ClientID,
		ClientSecret:       secret,
		Auth:               cfg.ClientAuthMethod.ClientAuth,
		RefreshWithoutAuth: !cfg.RefreshClientAuth,
		Encoding:           cfg.TokenRequestEncoding,
		Scope:              cfg.Scope,
		Audience:           cfg.Audience,
		Resource:           cfg.Resource,
		Parameters:         func() url.Values { return a.current.Load().parameters(faults{}) },
		Header:             func() http.Header { return a.current.Load().headers(faults{}) },
		Expiry: grant.ExpiryRule{
			Format:     cfg.ExpiresInFormat,
			Default:    cfg.DefaultLifetime,
			Max:        cfg.MaxLifetime,
			IgnoreJWT:  !cfg.UseJWTExp,
			IgnoreDate: !cfg.UseDateHeader,
		},
		Timeout:   cfg.TokenRequestTimeout,
		Transport: a.toTokens,
		Log:       a.log,
		Recorder:  rec,
	})
}

// server bounds what a client can do before its request is understood. There
// is no limit to a whole request, since bodies may be streams.
func server(cfg config, logger *zap.Logger, h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: cfg.HeaderTimeout,
		IdleTimeout:       cfg.IdleTimeout,
		MaxHeaderBytes:    cfg.MaxHeaderBytes,
		ErrorLog:          log.New(complaints{proxy.OncePerMinute(logger)}, "", 0),
		// OPTIONS * is for the handler to refuse.
		DisableGeneralOptionsHandler: true,
	}
}

// serve runs the sidecar on the two listeners until ctx is done or a server
// fails. The end comes in order: not ready, requests in flight drained, and
// only then, since they need tokens to the last, the cache.
func (a *app) serve(ctx context.Context, proxyListener, adminListener net.Listener) error {
	background, stopBackground := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = a.cache.Run(background) }) // it returns nil
	if a.secret != nil {
		running.Go(func() { a.secret.watch(background, a.cache.Renew) })
	}
	running.Go(func() { a.watchFiles(background) })
	running.Go(func() { a.toTokens.watch(background, a.log, a.cache.Renew) }) // a certificate may be a credential
	running.Go(func() { a.toUpstream.watch(background, a.log, func() {}) })
	failed := make(chan error, 2)
	proxyListener = newConnections(a.cfg.MaxConnections, settled).limit(a.proxy, halfCloseListener{stallListener{proxyListener, a.cfg.StallTimeout}, a.cfg.HalfCloseTimeout})
	adminListener = newConnections(adminConnections, settledAdmin).limit(a.admin, roomyListener{adminListener})
	go func() { failed <- a.proxy.Serve(proxyListener) }()
	go func() { failed <- a.admin.Serve(adminListener) }()

	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
	case <-a.quit:
	}
	a.shutdown()
	stopBackground()
	running.Wait()
	return err
}

// onQuit returns what the admin port does when it is told to quit; nil: it
// cannot be told.
func (a *app) onQuit() func() {
	if !a.cfg.AdminQuit {
		return nil
	}
	return sync.OnceFunc(func() { close(a.quit) })
}

// shutdown waits until requests in flight have ended, or cuts them off.
func (a *app) shutdown() {
	a.probe.stopping.Store(true)
	a.log.Info("stopping: draining requests in flight",
		zap.Duration("shutdown_delay", a.cfg.ShutdownDelay), zap.Duration("drain_timeout", a.cfg.DrainTimeout))
	time.Sleep(a.cfg.ShutdownDelay)

	ctx, cancel := context.WithTimeout(context.Background(), a.cfg.DrainTimeout)
	defer cancel()
	_ = a.proxy.Shutdown(ctx) // which forgets connections that have become tunnels
	a.inFlight.Wait(ctx)
	if ctx.Err() != nil {
		a.log.Warn("requests were still in flight after DRAIN_TIMEOUT, and are cut off")
		last, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		a.cutOff()
		_ = a.proxy.Close()
		a.inFlight.Wait(last)
	}
	a.cutOff()
	_ = a.admin.Close()
}
