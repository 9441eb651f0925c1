package main

import (
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"

	"github.com/token-sidecar/token-sidecar/proxy"
	"github.com/token-sidecar/token-sidecar/tokencache"
	"github.com/token-sidecar/token-sidecar/tokencache/grant"
)

// config is everything that can be configured. It is read from the
// environment here and nowhere else, and goes no further than this package.
type config struct {
	ConfigDir string `env:"CONFIG_DIR" help:"A folder of files, each named after a variable and holding its value, such as a mounted Secret or ConfigMap. What the environment sets goes first. A file CLIENT_SECRET, TOKEN_CA or the like is what CLIENT_SECRET_FILE or TOKEN_CA_FILE would name, and is taken up when it changes; the others are read at the start."`

	UpstreamURL upstreamURL `env:"UPSTREAM_URL" help:"Where requests go: the API's base URL, such as https://api.example.com/v1. Required."`
	TokenURL    endpointURL `env:"TOKEN_URL,unset" help:"The authorization server's token endpoint. Required."`

	ClientID         string            `env:"CLIENT_ID" help:"The OAuth 2.0 client. Required."`
	ClientSecret     tokencache.Secret `env:"CLIENT_SECRET,unset" help:"Its secret. This or CLIENT_SECRET_FILE is required, unless CLIENT_AUTH_METHOD is none or tls_client_auth."`
	ClientSecretFile string            `env:"CLIENT_SECRET_FILE" help:"A file that holds the secret instead. It is read anew for every token request, so the secret can be rotated in place."`
	ClientAuthMethod clientAuth        `env:"CLIENT_AUTH_METHOD" envDefault:"client_secret_post" help:"How the client proves itself: client_secret_post, client_secret_basic (form-encoded, as RFC 6749 has it), client_secret_basic_raw (not encoded), tls_client_auth (RFC 8705, by TOKEN_CERT_FILE) or none."`

	TokenRequestEncoding grant.Encoding    `env:"TOKEN_REQUEST_ENCODING" envDefault:"form" help:"The body of token requests: form or json."`
	Scope                string            `env:"SCOPE" help:"The scope to ask for."`
	Audience             string            `env:"AUDIENCE" help:"The audience parameter, for servers that want one."`
	Resource             commaList         `env:"RESOURCE" help:"Resource indicators (RFC 8707): absolute URIs, separated by commas."`
	TokenParameters      tokencache.Secret `env:"TOKEN_PARAMETERS,unset" help:"Further parameters of every token request, as a query: name=value&name=value, percent-encoded."`
	TokenParametersFile  string            `env:"TOKEN_PARAMETERS_FILE" help:"A file that holds TOKEN_PARAMETERS instead. It is read again when it changes, as are TOKEN_HEADERS_FILE and those of the proxies: what cannot be used is logged, and leaves in use what was there before."`
	TokenHeaders         tokencache.Secret `env:"TOKEN_HEADERS,unset" help:"Further headers of every token request, written like TOKEN_PARAMETERS."`
	TokenHeadersFile     string            `env:"TOKEN_HEADERS_FILE" help:"A file that holds TOKEN_HEADERS instead."`
	RefreshURL           endpointURL       `env:"REFRESH_URL,unset" help:"Where refresh tokens are exchanged, if not at TOKEN_URL."`
	RevocationURL        endpointURL       `env:"REVOCATION_URL,unset" help:"Where tokens are revoked (RFC 7009) when the sidecar ends, for two seconds at most, by requests like those for tokens. By default they are left to expire."`
	RefreshClientAuth    bool              `env:"REFRESH_CLIENT_AUTH" envDefault:"true" help:"Whether the client proves itself when it refreshes, as RFC 6749 demands. Some servers want the refresh token alone."`
	TokenRequestTimeout  time.Duration     `env:"TOKEN_REQUEST_TIMEOUT" envDefault:"10s" help:"The most that one token request may take."`
	TokenProxyURL        proxyURL          `env:"TOKEN_PROXY_URL,unset" help:"A proxy for token requests: its URL, or environment to heed HTTPS_PROXY and its like. None by default, whatever the environment says."`
	TokenProxyURLFile    string            `env:"TOKEN_PROXY_URL_FILE" help:"A file that holds TOKEN_PROXY_URL instead, if there is a password in it."`
	TokenCAFile          string            `env:"TOKEN_CA_FILE" help:"A bundle of CA certificates (PEM). They alone may vouch for the token endpoint then, and for an https:// proxy before it, in place of the system's. Read again when it changes, as are the other certificates and keys."`
	TokenCertFile        string            `env:"TOKEN_CERT_FILE" help:"A client certificate, with its chain (PEM), to show the token endpoint: for CLIENT_AUTH_METHOD=tls_client_auth, or beside a secret."`
	TokenKeyFile         string            `env:"TOKEN_KEY_FILE" help:"Its private key (PEM, not encrypted)."`

	ExpiresInFormat grant.Format  `env:"EXPIRES_IN_FORMAT" envDefault:"auto" help:"What the number in expires_in means: seconds or milliseconds to live, unix or unix_ms for the time of expiry, auto to tell seconds from Unix times by size, ignore."`
	DefaultLifetime time.Duration `env:"DEFAULT_LIFETIME" envDefault:"10m" help:"The life assumed of a token if the server tells nothing credible."`
	MaxLifetime     time.Duration `env:"MAX_LIFETIME" envDefault:"24h" help:"Refreshes are planned as if no token lived longer; 0 turns that off. A longer-lived token still serves to its end if no other can be had."`
	ExpiryLeeway    time.Duration `env:"EXPIRY_LEEWAY" envDefault:"1s" help:"How long before its expiry a token is not sent any more; at most a tenth of its life."`
	UseJWTExp       bool          `env:"USE_JWT_EXP" envDefault:"true" help:"Whether the exp claim of a token that is a JWT may shorten its life."`
	UseDateHeader   bool          `env:"USE_DATE_HEADER" envDefault:"true" help:"Whether a time of expiry is measured by the server's own clock, as its Date header shows it."`

	Rotation           rotation          `env:"ROTATION" envDefault:"hold" help:"What a refresh does to requests: hold uses the refresh token, and has new requests wait for the answer since the token at hand may die with it; overlap always asks with the full grant instead, for servers that then let the old token live."`
	RefreshWindow      tokencache.Window `env:"REFRESH_WINDOW" envDefault:"0.50-0.75" help:"The part of its life in which a token is refreshed, at a random point."`
	MinRefreshInterval time.Duration     `env:"MIN_REFRESH_INTERVAL" envDefault:"1s" help:"The least time between two refreshes."`
	TokenWait          time.Duration     `env:"TOKEN_WAIT" envDefault:"10s" help:"How long a request waits for a token when none is valid."`

	ListenAddress string `env:"LISTEN_ADDRESS" envDefault:"127.0.0.1:8080" help:"Where the app sends its requests to."`
	ListenHTTP2   bool   `env:"LISTEN_HTTP2" envDefault:"false" help:"Whether the app may speak HTTP/2 beside HTTP/1.1: without TLS and by prior knowledge (RFC 9113 section 3.3), as gRPC does."`
	AdminAddress  string `env:"ADMIN_ADDRESS" envDefault:"127.0.0.1:9090" help:"Where /livez, /readyz, /startupz and /metrics are served."`
	AdminQuit     bool   `env:"ADMIN_QUIT" envDefault:"false" help:"Whether POST /quitquitquit on ADMIN_ADDRESS ends the sidecar as SIGTERM does, for Jobs on clusters without native sidecars."`
	DebugAddress  string `env:"DEBUG_ADDRESS" help:"Where Go's profiles are served, below /debug/pprof/: a loopback address. By default nowhere."`

	AllowedHosts           commaList `env:"ALLOWED_HOSTS" help:"Names, separated by commas, by which the sidecar may be called in Host beside localhost, loopback addresses and the host of LISTEN_ADDRESS, such as those of a Service before it; * for any. Where LISTEN_ADDRESS has no host every address will do, but no name. They hold for ADMIN_ADDRESS as well, where every address will do."`
	AllowedMethods         commaList `env:"ALLOWED_METHODS" help:"The methods that may be used, separated by commas. By default all but CONNECT, TRACE, TRACK and PRI, which never are."`
	AllowedPaths           commaList `env:"ALLOWED_PATHS" help:"The paths that may be asked for, with what is below them, separated by commas: as the app has them, so without the path of UPSTREAM_URL, and not percent-encoded. By default all."`
	AllowCrossSite         bool      `env:"ALLOW_CROSS_SITE" envDefault:"false" help:"Whether web pages of other sites may send requests through a browser, as the field Sec-Fetch-Site tells."`
	AllowUnderscoreHeaders bool      `env:"ALLOW_UNDERSCORE_HEADERS" envDefault:"false" help:"Whether requests may have header names with an underscore, which many servers cannot tell from a hyphen."`

	MaxHeaderBytes   int           `env:"MAX_HEADER_BYTES" envDefault:"65536" help:"The most that the head of a request may take, and 4096 more. It may have 128 fields, and announce 32 trailers."`
	HeaderTimeout    time.Duration `env:"HEADER_TIMEOUT" envDefault:"10s" help:"The most that the head of a request may take to come."`
	IdleTimeout      time.Duration `env:"IDLE_TIMEOUT" envDefault:"1m" help:"How long an idle connection of a client is kept."`
	StallTimeout     time.Duration `env:"STALL_TIMEOUT" envDefault:"1m" help:"How long a client may send nothing of a body that is not answered yet, or take nothing of what is there for it, before it is cut off; 0: for ever. Long polls, streams, gRPC calls and websockets may pause for as long as they like."`
	HalfCloseTimeout time.Duration `env:"HALF_CLOSE_TIMEOUT" envDefault:"10s" help:"How long a client that has closed its sending side after a request is waited with for more of the answer; 0: for ever. One that has left cannot be told from it, and counts as in flight."`

	AllowRemoteClients bool `env:"ALLOW_REMOTE_CLIENTS" envDefault:"false" help:"Permits a LISTEN_ADDRESS beyond loopback. Whoever reaches it acts with your credentials."`
	AllowPlainHTTP     bool `env:"ALLOW_PLAIN_HTTP" envDefault:"false" help:"Permits http:// to other machines, for UPSTREAM_URL, TOKEN_URL, REFRESH_URL and REVOCATION_URL. Whoever is on the way reads the credentials."`

	UpstreamConnectTimeout  time.Duration `env:"UPSTREAM_CONNECT_TIMEOUT" envDefault:"5s" help:"The most that a connection to the upstream may take to come about."`
	UpstreamResponseTimeout time.Duration `env:"UPSTREAM_RESPONSE_TIMEOUT" envDefault:"0" help:"The most that the upstream may take to begin its answer; 0: no limit."`
	UpstreamIdleTimeout     time.Duration `env:"UPSTREAM_IDLE_TIMEOUT" envDefault:"4s" help:"How long an idle connection to the upstream is kept. It must be less than the upstream keeps it for, or requests will meet closing connections."`
	UpstreamHTTP2           bool          `env:"UPSTREAM_HTTP2" envDefault:"false" help:"Whether an http:// upstream takes HTTP/2, and nothing else, by prior knowledge: a gRPC server without TLS. By https:// it is asked."`
	UpstreamProxyURL        proxyURL      `env:"UPSTREAM_PROXY_URL,unset" help:"A proxy for requests to the upstream, written like TOKEN_PROXY_URL."`
	UpstreamProxyURLFile    string        `env:"UPSTREAM_PROXY_URL_FILE" help:"A file that holds UPSTREAM_PROXY_URL instead, if there is a password in it."`
	UpstreamCAFile          string        `env:"UPSTREAM_CA_FILE" help:"A bundle of CA certificates (PEM) that alone may vouch for the upstream, like TOKEN_CA_FILE."`
	UpstreamCertFile        string        `env:"UPSTREAM_CERT_FILE" help:"A client certificate, with its chain (PEM), to show the upstream."`
	UpstreamKeyFile         string        `env:"UPSTREAM_KEY_FILE" help:"Its private key (PEM, not encrypted)."`

	ShutdownDelay  time.Duration `env:"SHUTDOWN_DELAY" envDefault:"0" help:"After SIGTERM, how long to go on serving while /readyz already says no, so that a load balancer can notice."`
	MaxInFlight    int           `env:"MAX_IN_FLIGHT" help:"The most requests that are served at a time; more are answered 503 at once. By default what the limits of memory and of open files allow."`
	MaxConnections int           `env:"MAX_CONNECTIONS" help:"The most connections of clients; when another comes, the longest idle is closed. By default twice MAX_IN_FLIGHT. Neither exceeds what the limit of open files allows."`

	DrainTimeout time.Duration `env:"DRAIN_TIMEOUT" envDefault:"25s" help:"After SIGTERM, and SHUTDOWN_DELAY, how long requests in flight may take to end. Then they are cut off."`
	LogLevel     logLevel      `env:"LOG_LEVEL" envDefault:"info" help:"debug, info, warn or error."`

	unknownFiles []string                     // in ConfigDir
	inFiles      map[string]tokencache.Secret // what files hold that are read again, by variable
}

// loadConfig reads the configuration from an environment, and from the files
// that it names. Its error tells all faults at once, each with its variable and
// what would be right, and shows no value that may be secret.
func loadConfig(environ map[string]string) (config, error) {
	var cfg config
	f := faults{}
	environ, cfg.unknownFiles = withFiles(environ, f)
	f.addParseErrors(env.ParseWithOptions(&cfg, env.Options{Environment: environ, FuncMap: map[reflect.Type]env.ParserFunc{
		reflect.TypeFor[time.Duration](): parse(time.ParseDuration, "want a duration, such as 10s or 5m"),
		reflect.TypeFor[int]():           parse(strconv.Atoi, "want a number of 0 or more"),
		reflect.TypeFor[bool]():          parse(strconv.ParseBool, "want true or false"),
	}}))
	cfg.validate(f)
	for _, v := range variables() {
		f.unless(!quoted(environ[v.name]), v.name, inQuotes)
	}
	return cfg, f.err()
}

// parse gives a parser an error that says what would be right.
func parse[T any](parser func(string) (T, error), want string) env.ParserFunc {
	return func(text string) (any, error) {
		value, err := parser(text)
		if err != nil {
			return nil, errors.New(want)
		}
		return value, nil
	}
}

func (c *config) validate(f faults) {
	c.validateClient(f)
	for name, s := range c.fileSettings() {
		f.unless(s.path == "" || !s.isSet, name, "is set beside the variable without _FILE: set one of them")
	}
	c.takeFiles(f)
	c.tokenTLS().check(f, "TOKEN")
	c.upstreamTLS().check(f, "UPSTREAM")
	c.validateNumbers(f)
	c.validateAddresses(f)
	c.validateGuard(f)
	if c.UpstreamHTTP2 {
		plain := c.UpstreamURL.URL == nil || c.UpstreamURL.Scheme == "http"
		f.unless(plain, "UPSTREAM_HTTP2", "is for an UPSTREAM_URL that begins with http://: by https:// the upstream is asked, so leave it out")
		f.unless(c.UpstreamProxyURL.proxy == nil, "UPSTREAM_HTTP2", "cannot be used through UPSTREAM_PROXY_URL, which would have to speak it as well")
	}
}

const fromEcho = "ends in a line break, as a Secret made with echo does: make it with printf"

func (c *config) validateClient(f faults) {
	f.unless(c.UpstreamURL.URL != nil, "UPSTREAM_URL", "is required: the API's base URL, such as https://api.example.com/v1")
	f.unless(c.TokenURL.URL != nil, "TOKEN_URL", "is required: the token endpoint, such as https://auth.example.com/oauth/token")
	f.unless(c.ClientID != "", "CLIENT_ID", "is required")
	f.unless(!endsInLineBreak(c.ClientID), "CLIENT_ID", fromEcho)
	f.unless(!endsInLineBreak(c.ClientSecret.Reveal()), "CLIENT_SECRET", fromEcho)
	c.validateSecret(f)
	for _, r := range c.Resource {
		u, err := url.Parse(r)
		f.unless(err == nil && u.IsAbs() && !strings.Contains(r, "#"), "RESOURCE", "want absolute URIs without fragment, separated by commas")
	}
}

func (c *config) validateNumbers(f faults) {
	for name, d := range map[string]time.Duration{
		"TOKEN_REQUEST_TIMEOUT": c.TokenRequestTimeout, "DEFAULT_LIFETIME": c.DefaultLifetime, "MIN_REFRESH_INTERVAL": c.MinRefreshInterval,
		"UPSTREAM_CONNECT_TIMEOUT": c.UpstreamConnectTimeout, "UPSTREAM_IDLE_TIMEOUT": c.UpstreamIdleTimeout,
		"HEADER_TIMEOUT": c.HeaderTimeout, "IDLE_TIMEOUT": c.IdleTimeout,
	} {
		f.unless(d > 0, name, "want a duration above 0, such as 10s")
	}
	for name, d := range map[string]time.Duration{
		"MAX_LIFETIME": c.MaxLifetime, "EXPIRY_LEEWAY": c.ExpiryLeeway, "TOKEN_WAIT": c.TokenWait,
		"UPSTREAM_RESPONSE_TIMEOUT": c.UpstreamResponseTimeout, "DRAIN_TIMEOUT": c.DrainTimeout, "SHUTDOWN_DELAY": c.ShutdownDelay,
		"STALL_TIMEOUT": c.StallTimeout, "HALF_CLOSE_TIMEOUT": c.HalfCloseTimeout,
	} {
		f.unless(d >= 0, name, "want a duration of 0 or more, such as 10s")
	}
	for name, n := range map[string]int{"MAX_IN_FLIGHT": c.MaxInFlight, "MAX_CONNECTIONS": c.MaxConnections} {
		f.unless(n >= 0, name, "want a number of 0 or more")
	}
	f.unless(c.MaxHeaderBytes >= 1024, "MAX_HEADER_BYTES", "want a number of 1024 or more")
}

func (c *config) validateAddresses(f faults) {
	taken := map[string]string{}
	for _, at := range []struct{ name, address string }{
		{"LISTEN_ADDRESS", c.ListenAddress}, {"ADMIN_ADDRESS", c.AdminAddress}, {"DEBUG_ADDRESS", c.DebugAddress},
	} {
		if at.address == "" && at.name == "DEBUG_ADDRESS" {
			continue
		}
		host, port, err := net.SplitHostPort(at.address)
		_, portErr := strconv.ParseUint(port, 10, 16)
		f.unless(err == nil && portErr == nil, at.name, "want host:port, such as 127.0.0.1:8080")
		f.unless(at.name != "DEBUG_ADDRESS" || isLoopback(host), at.name, "want a loopback address, such as 127.0.0.1:6060")
		f.unless(taken[at.address] == "" || port == "0", at.name, "must differ from "+taken[at.address])
		taken[at.address] = at.name
	}
}

func (c *config) validateGuard(f faults) {
	for _, host := range c.AllowedHosts {
		_, err := netip.ParseAddr(host)
		f.unless(err == nil || host == "*" || hostName.MatchString(host), "ALLOWED_HOSTS", "want names without port, such as gateway.example.com, separated by commas")
	}
	for _, method := range c.AllowedMethods {
		upper := strings.ToUpper(method)
		never := slices.Contains(proxy.ForbiddenMethods, upper)
		f.unless(httpToken.MatchString(method) && !never, "ALLOWED_METHODS", "want methods, such as GET,POST, but none of "+strings.Join(proxy.ForbiddenMethods, ", "))
		f.unless(method == upper || !slices.Contains(proxy.UsualMethods, upper), "ALLOWED_METHODS", "methods are case-sensitive: want "+upper)
	}
	for _, path := range c.AllowedPaths {
		f.unless(strings.HasPrefix(path, "/") && !strings.Contains(path, "//"), "ALLOWED_PATHS", "want paths that begin with /, such as /orders,/items")
	}
}

// guard is what the configuration says about who may enter.
func (c *config) guard() proxy.Guard {
	own, _, _ := net.SplitHostPort(c.ListenAddress)
	return proxy.Guard{
		Hosts: append([]string{own}, c.AllowedHosts...), Methods: c.AllowedMethods, Paths: c.AllowedPaths,
		AllowUnderscores: c.AllowUnderscoreHeaders, AllowCrossSite: c.AllowCrossSite,
	}
}

func (c *config) validateSecret(f faults) {
	switch {
	case c.ClientAuthMethod.name == "none":
	case c.ClientAuthMethod.name == "tls_client_auth":
		f.unless(c.TokenCertFile != "", "TOKEN_CERT_FILE", "is required for CLIENT_AUTH_METHOD=tls_client_auth, and so is TOKEN_KEY_FILE")
	case c.ClientSecret.IsZero() && c.ClientSecretFile == "":
		f.add("CLIENT_SECRET", "is required, or CLIENT_SECRET_FILE, unless CLIENT_AUTH_METHOD is none or tls_client_auth")
	case !c.ClientSecret.IsZero() && c.ClientSecretFile != "":
		f.add("CLIENT_SECRET_FILE", "is set beside CLIENT_SECRET: set one of them")
	case c.ClientSecretFile != "":
		f.secretFrom(c.ClientSecretFile, "CLIENT_SECRET_FILE")
	}
}

func (c *config) tokenTLS() tlsFiles { return tlsFiles{c.TokenCAFile, c.TokenCertFile, c.TokenKeyFile} }

func (c *config) upstreamTLS() tlsFiles {
	return tlsFiles{c.UpstreamCAFile, c.UpstreamCertFile, c.UpstreamKeyFile}
}

// reservedParameters are those that the grants set themselves; RFC 6749
// section 3.2 allows none to occur twice.
var reservedParameters = []string{
	"grant_type", "client_id", "client_secret", "refresh_token", "scope", "audience", "resource",
}

func (c *config) parameters(f faults) url.Values {
	const name = "TOKEN_PARAMETERS"
	values, err := url.ParseQuery(c.TokenParameters.Reveal())
	f.unless(err == nil, name, "want name=value&name=value, percent-encoded")
	for _, reserved := range reservedParameters {
		f.unless(!values.Has(reserved), name, "must not hold "+reserved+", which has a variable of its own or is set by the grant")
	}
	return values
}

var reservedHeaders = []string{
	"Accept", "Authorization", "Connection", "Content-Encoding", "Content-Length", "Content-Type", "Host", "Transfer-Encoding",
}

func (c *config) headers(f faults) http.Header {
	values, err := url.ParseQuery(c.TokenHeaders.Reveal())
	f.unless(err == nil, "TOKEN_HEADERS", "want Name=value&Name=value, percent-encoded")
	header := http.Header{}
	for name, v := range values {
		name := http.CanonicalHeaderKey(name)
		header[name] = append(header[name], v...)
		f.unless(httpToken.MatchString(name) && !slices.ContainsFunc(v, hasControl), "TOKEN_HEADERS", "want names and values that a header may have")
	}
	for _, reserved := range reservedHeaders {
		f.unless(header[reserved] == nil, "TOKEN_HEADERS", "must not hold "+reserved+", which is set by the sidecar")
	}
	if header["User-Agent"] == nil {
		header.Set("User-Agent", "token-sidecar/"+runningVersion())
	}
	return header
}

const inQuotes = "is in quotes, which would be taken for a part of it"

func quoted(s string) bool {
	return len(s) > 1 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0]
}

func endsInLineBreak(s string) bool { return strings.HasSuffix(s, "\n") || strings.HasSuffix(s, "\r") }

// httpToken is the token of RFC 9110 section 5.6.2: a method, or the name of a field.
var httpToken = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")

var hostName = regexp.MustCompile("^[0-9A-Za-z._-]+$")

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f })
}
