package main

import (
	"context"
	"errors"
	"net"
	"net/http"
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
	cfg   config
	log   *zap.Logger
	cache *tokencache.Cache
	proxy *http.Server
	admin *http.Server
	probe *probes
}

// newApp wires the sidecar. adapt, if not nil, may change the transports to
// the token endpoint and to the upstream.
func newApp(cfg config, log *zap.Logger, adapt func(*http.Transport)) *app {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m := metrics.New(reg, runningVersion())
	m.Expect(grant.Reasons, grant.AnomalyKinds, proxy.Reasons, proxy.Outcomes)

	tokenTransport := grant.NewTransport(cfg.TokenProxyURL.proxy)
	upstreamTransport := proxy.NewTransport(proxy.TransportConfig{
		ConnectTimeout:  cfg.UpstreamConnectTimeout,
		ResponseTimeout: cfg.UpstreamResponseTimeout,
		IdleTimeout:     cfg.UpstreamIdleTimeout,
		Proxy:           cfg.UpstreamProxyURL.proxy,
	})
	if adapt != nil {
		adapt(tokenTransport)
		adapt(upstreamTransport)
	}

	a := &app{cfg: cfg, log: log}
	unrepeatable := &proxy.Unrepeatable{}
	a.cache = tokencache.New(tokencache.Config{
		Grants:             grant.WithBreaker(newClient(cfg, tokenTransport, log, m), m.BreakerChanged),
		Wait:               cfg.TokenWait,
		Window:             cfg.RefreshWindow,
		Leeway:             cfg.ExpiryLeeway,
		MinInterval:        cfg.MinRefreshInterval,
		Hold:               time.Second,
		Quiet:              unrepeatable.Wait,
		FullGrantOnly:      cfg.Rotation == overlap,
		InvalidateInterval: 10 * time.Second,
		Log:                log,
		Recorder:           m,
	})
	a.proxy = server(log, proxy.New(proxy.Config{
		Upstream:     cfg.UpstreamURL.URL,
		Tokens:       a.cache,
		Transport:    upstreamTransport,
		Unrepeatable: unrepeatable,
		Log:          log,
		Recorder:     m,
	}))
	a.probe = &probes{tokens: a.cache}
	a.admin = server(log, adminHandler(a.probe, reg))
	return a
}

func newClient(cfg config, transport http.RoundTripper, log *zap.Logger, rec grant.Recorder) *grant.Client {
	return grant.New(grant.Config{
		TokenURL:           cfg.TokenURL.URL,
		RefreshURL:         cfg.RefreshURL.URL,
		ClientID:           cfg.ClientID,
		ClientSecret:       cfg.secret(),
		Auth:               cfg.ClientAuthMethod,
		RefreshWithoutAuth: !cfg.RefreshClientAuth,
		Encoding:           cfg.TokenRequestEncoding,
		Scope:              cfg.Scope,
		Audience:           cfg.Audience,
		Resource:           cfg.Resource,
		Parameters:         cfg.parameters(faults{}),
		Header:             cfg.headers(faults{}),
		Expiry: grant.ExpiryRule{
			Format:     cfg.ExpiresInFormat,
			Default:    cfg.DefaultLifetime,
			Max:        cfg.MaxLifetime,
			IgnoreJWT:  !cfg.UseJWTExp,
			IgnoreDate: !cfg.UseDateHeader,
		},
		Timeout:   cfg.TokenRequestTimeout,
		Transport: transport,
		Log:       log,
		Recorder:  rec,
	})
}

// server bounds what a client can do before its request is understood. There
// is no limit to a whole request, since bodies may be streams.
func server(log *zap.Logger, h http.Handler) *http.Server {
	errorLog, err := zap.NewStdLogAt(log, zap.DebugLevel)
	if err != nil {
		panic(err) // debug is a level
	}
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          errorLog,
	}
}

// serve runs the sidecar on the two listeners until ctx is done or a server
// fails. The end comes in order: not ready, requests in flight drained, and
// only then, since they need tokens to the last, the cache.
func (a *app) serve(ctx context.Context, proxyListener, adminListener net.Listener) error {
	cacheCtx, stopCache := context.WithCancel(context.Background())
	cacheDone := make(chan error, 1)
	go func() { cacheDone <- a.cache.Run(cacheCtx) }()

	failed := make(chan error, 2)
	go func() { failed <- a.proxy.Serve(proxyListener) }()
	go func() { failed <- a.admin.Serve(adminListener) }()

	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	a.probe.stopping.Store(true)
	a.log.Info("stopping: draining requests in flight", zap.Duration("drain_timeout", a.cfg.DrainTimeout))
	a.shutdown()
	stopCache()
	return errors.Join(err, <-cacheDone)
}

// shutdown waits until requests in flight have ended, or cuts them off.
func (a *app) shutdown() {
	ctx, cancel := context.WithTimeout(context.Background(), a.cfg.DrainTimeout)
	defer cancel()
	if err := a.proxy.Shutdown(ctx); err != nil {
		a.log.Warn("requests were still in flight after DRAIN_TIMEOUT, and are cut off")
		_ = a.proxy.Close()
	}
	_ = a.admin.Close()
}
