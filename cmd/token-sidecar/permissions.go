package main

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// permissions refuses what exposes credentials unless it is permitted by name.
func (c *config) permissions(f faults) {
	for name, way := range map[string]struct {
		to    *url.URL
		proxy func(*http.Request) (*url.URL, error)
	}{
		"TOKEN_URL":      {c.TokenURL.URL, c.TokenProxyURL.proxy},
		"REFRESH_URL":    {c.RefreshURL.URL, c.TokenProxyURL.proxy},
		"REVOCATION_URL": {c.RevocationURL.URL, c.TokenProxyURL.proxy},
		"UPSTREAM_URL":   {c.UpstreamURL.URL, c.UpstreamProxyURL.proxy},
	} {
		f.unless(c.AllowPlainHTTP || way.to == nil || !inTheClear(way.to, way.proxy), name,
			"is http:// to another machine, and whoever is on the way can read the credentials: use https://, or set ALLOW_PLAIN_HTTP=true if something else encrypts that way, as a service mesh does")
	}
	f.unless(c.AllowRemoteClients || localOnly(c.ListenAddress), "LISTEN_ADDRESS",
		"is open to other machines, and whoever reaches it acts with your credentials: listen at 127.0.0.1, or set ALLOW_REMOTE_CLIENTS=true if something else keeps strangers away, as a container's published port does")
}

// inTheClear reports whether requests to that URL leave this machine without TLS.
func inTheClear(to *url.URL, proxy func(*http.Request) (*url.URL, error)) bool {
	if to.Scheme != "http" {
		return false
	}
	next := to
	if proxy != nil {
		if by, err := proxy(&http.Request{URL: to}); err == nil && by != nil {
			next = by
		}
	}
	return !isLoopback(next.Hostname())
}

func localOnly(address string) bool {
	host, _, err := net.SplitHostPort(address)
	return err != nil || isLoopback(host) // an error is told elsewhere
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && ip.Unmap().IsLoopback()
}
