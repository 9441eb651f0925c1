package main

import (
	"context"
	"encoding"
	"maps"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/token-sidecar/token-sidecar/proxy"
	"github.com/token-sidecar/token-sidecar/tokencache"
)

// A fileSetting is a variable whose value may be in a file.
type fileSetting struct {
	path  string // "": it is not
	isSet bool
	value encoding.TextUnmarshaler
}

// fileSettings are those that are read again when their files change, by the
// variables that name the files.
func (c *config) fileSettings() map[string]fileSetting {
	return map[string]fileSetting{
		"TOKEN_PARAMETERS_FILE":   {c.TokenParametersFile, !c.TokenParameters.IsZero(), &c.TokenParameters},
		"TOKEN_HEADERS_FILE":      {c.TokenHeadersFile, !c.TokenHeaders.IsZero(), &c.TokenHeaders},
		"TOKEN_PROXY_URL_FILE":    {c.TokenProxyURLFile, c.TokenProxyURL.proxy != nil, &c.TokenProxyURL},
		"UPSTREAM_PROXY_URL_FILE": {c.UpstreamProxyURLFile, c.UpstreamProxyURL.proxy != nil, &c.UpstreamProxyURL},
	}
}

// takeFiles takes over what the files hold, and checks what depends on that.
func (c *config) takeFiles(f faults) {
	c.inFiles = map[string]tokencache.Secret{}
	for name, s := range c.fileSettings() {
		if s.path == "" {
			continue
		}
		text := f.secretFrom(s.path, name)
		c.inFiles[name] = text
		if err := s.value.UnmarshalText([]byte(text.Reveal())); err != nil {
			f.add(name, err.Error())
		}
	}
	c.parameters(f)
	c.headers(f)
	c.permissions(f)
}

// reread returns the configuration as it is with what the files hold now.
func (c config) reread() (config, faults) {
	f := faults{}
	c.takeFiles(f)
	return c, f
}

// changedSince returns the variables whose files held something else before.
func (c *config) changedSince(before *config) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(c.inFiles)) {
		if c.inFiles[name].Reveal() != before.inFiles[name].Reveal() {
			names = append(names, name)
		}
	}
	return names
}

// watchFiles takes up what the files hold when they change, all of it or none,
// until ctx is done.
func (a *app) watchFiles(ctx context.Context) {
	if len(a.cfg.inFiles) == 0 {
		return
	}
	complain := proxy.OncePerMinute(a.log)
	poll(ctx, func() {
		before := a.current.Load()
		now, faults := before.reread()
		if len(faults) > 0 {
			complain.Warn("settings in files have changed and cannot be used: those before stay in use", zap.Strings("faults", faults.lines()))
			return
		}
		changed := now.changedSince(before)
		if len(changed) == 0 {
			return
		}
		a.current.Store(&now)
		a.log.Info("settings in files have changed, and are used from now on", zap.Strings("variables", changed))
		if slices.ContainsFunc(changed, func(name string) bool { return strings.HasPrefix(name, "TOKEN_") }) {
			a.cache.Renew() // which proves at once what requests are made of
		}
	})
}
