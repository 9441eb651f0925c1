package main

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"go.uber.org/zap/zapcore"

	"github.com/token-sidecar/token-sidecar/tokencache/grant"
)

// An endpointURL is an absolute http or https URL. It prints without its
// query, which may hold a secret.
type endpointURL struct{ *url.URL }

func (e endpointURL) String() string {
	if e.URL == nil {
		return ""
	}
	return (&url.URL{Scheme: e.Scheme, Host: e.Host, Path: e.Path, RawPath: e.RawPath}).String()
}

// MarshalText is how JSON and zap print it.
func (e endpointURL) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

func (e *endpointURL) UnmarshalText(text []byte) error {
	u, err := url.Parse(string(text))
	switch {
	case err != nil: // which would show the URL, and what secrets it holds
		return errors.New("is not a URL")
	case u.Scheme != "https" && u.Scheme != "http", u.Host == "":
		return errors.New("want an absolute URL that begins with https:// or http://")
	case u.User != nil:
		return errors.New("must hold no user and password: use CLIENT_ID and CLIENT_SECRET")
	case u.Fragment != "" || strings.Contains(string(text), "#"):
		return errors.New("must hold no fragment") // RFC 6749 section 3.2
	}
	e.URL = u
	return nil
}

// An upstreamURL is a URL that other paths and queries can follow.
type upstreamURL struct{ endpointURL }

func (u *upstreamURL) UnmarshalText(text []byte) error {
	if err := u.endpointURL.UnmarshalText(text); err != nil {
		return err
	}
	if u.RawQuery != "" || u.ForceQuery {
		u.URL = nil
		return errors.New("must hold no query: the app's requests bring theirs")
	}
	return nil
}

// A commaList is what stands between commas. One that holds nothing is a
// fault, for to allow nothing would be taken for no limit at all.
type commaList []string

func (l *commaList) UnmarshalText(text []byte) error {
	for item := range strings.SplitSeq(string(text), ",") {
		if item = strings.TrimSpace(item); item != "" {
			*l = append(*l, item)
		}
	}
	if *l == nil {
		return errors.New("holds nothing but commas and blanks: leave it out, or name what it is to hold")
	}
	return nil
}

// A rotation is how a token is replaced while requests go on.
type rotation string

const (
	rotationHold    rotation = "hold"
	rotationOverlap rotation = "overlap"
)

func (r *rotation) UnmarshalText(text []byte) error {
	*r = rotation(text)
	if *r != rotationHold && *r != rotationOverlap {
		return errors.New("want hold or overlap")
	}
	return nil
}

// A proxyURL says which proxy to use, as [http.Transport] wants to know it.
type proxyURL struct {
	proxy func(*http.Request) (*url.URL, error)
}

func (p *proxyURL) UnmarshalText(text []byte) error {
	if string(text) == "environment" {
		p.proxy = http.ProxyFromEnvironment
		return nil
	}
	u, err := url.Parse(string(text))
	if err != nil || u.Host == "" || !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme) {
		return errors.New("want environment, or a URL that begins with http://, https:// or socks5://")
	}
	p.proxy = http.ProxyURL(u)
	return nil
}

// A clientAuth is a method of client authentication that knows its name.
type clientAuth struct {
	grant.ClientAuth
	name string
}

func (a *clientAuth) UnmarshalText(text []byte) error {
	a.name = string(text)
	return a.ClientAuth.UnmarshalText(text)
}

// A logLevel is the least severe kind of line that is logged.
type logLevel struct{ zapcore.Level }

func (l *logLevel) UnmarshalText(text []byte) error {
	if l.Level.UnmarshalText(text) != nil || l.Level < zapcore.DebugLevel || l.Level > zapcore.ErrorLevel {
		return errors.New("want debug, info, warn or error")
	}
	return nil
}
