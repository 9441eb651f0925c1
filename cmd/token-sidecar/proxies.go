package main

import (
	"errors"
	"net/http"
	"net/url"

	"go.uber.org/zap"
)

// proxyNow returns the proxy of a leg as it is at the time of each request;
// nil: there is none.
func (a *app) proxyNow(of func(*config) proxyURL) func(*http.Request) (*url.URL, error) {
	if of(&a.cfg).proxy == nil {
		return nil
	}
	return func(r *http.Request) (*url.URL, error) { return of(a.current.Load()).proxy(r) }
}

// A proxied transport is one to an upstream by http, where a proxy answers like
// the upstream itself, unless it is one of SOCKS. A 407 is the proxy's (RFC 9110
// section 15.5.8), and may show the password that it got, which is not the app's
// to know.
type proxied struct {
	http.RoundTripper
	log *zap.Logger
}

var errProxyRefuses = errors.New("the proxy refuses to serve us")

func (p proxied) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := p.RoundTripper.RoundTrip(r)
	if err != nil || resp.StatusCode != http.StatusProxyAuthRequired {
		return resp, err
	}
	_ = resp.Body.Close()
	p.log.Warn("the proxy answers 407: check user and password in UPSTREAM_PROXY_URL")
	return nil, errProxyRefuses
}
