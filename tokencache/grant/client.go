// Package grant asks an OAuth 2.0 token endpoint for tokens: the
// client_credentials grant (RFC 6749 section 4.4) and the refresh_token grant
// (section 6). A [Client] performs one request when it is told to; when to ask,
// and what to do after a failure, is the business of package tokencache.
//
// It is written for servers as they are: an expires_in that is a string, an
// absolute time or missing, an error inside a 200, answers in HTML, answers
// without an end. Whatever comes back becomes a usable token or one typed
// [Error], which quotes neither bodies nor secrets.
package grant

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/token-sidecar/token-sidecar/tokencache"
)

const (
	clientCredentials = "client_credentials"
	refreshToken      = "refresh_token"

	// defaultTimeout bounds one token request from dialling to the last byte.
	defaultTimeout = 10 * time.Second

	// maxBody is sixteen times the longest access token that is accepted.
	maxBody = 256 << 10
)

// Recorder is told of oddities, for metrics. It must not block.
type Recorder interface {
	// ExpiryAnomaly reports an expiry that could not be believed; kind is one
	// word of a fixed set.
	ExpiryAnomaly(kind string)
	// ClockSkew reports how far the server's clock is ahead of ours, to the
	// second that a Date header tells; 0 if it tells nothing credible.
	ClockSkew(ahead time.Duration)
}

// Config describes one OAuth 2.0 client at one authorization server. What may
// be secret in it is behind functions, of which nothing can print more than
// the address.
type Config struct {
	TokenURL      *url.URL
	RefreshURL    *url.URL // nil: TokenURL
	RevocationURL *url.URL // nil: Revoke does nothing

	ClientID string
	// ClientSecret is called for every request, so that a secret replaced
	// while we run is used from the next request on.
	ClientSecret func() (tokencache.Secret, error)
	// Auth is how the client proves who it is; nil: ClientSecretPost.
	Auth ClientAuth
	// RefreshWithoutAuth leaves the client's credentials out of the
	// refresh_token grant, against RFC 6749 section 6, for servers that want
	// the refresh token alone.
	RefreshWithoutAuth bool
	// Encoding is the form of the request's body; nil: Form.
	Encoding Encoding

	// Scope, Audience and Resource (RFC 6749 section 3.3, RFC 8707) belong to
	// the full grant; a refresh keeps what was granted. Empty: not sent.
	Scope    string
	Audience string
	Resource []string
	// Parameters and Header are added to every request; nil: none.
	Parameters func() url.Values
	Header     func() http.Header

	Expiry  ExpiryRule
	Timeout time.Duration // of one request; 0: defaultTimeout

	Transport http.RoundTripper // nil: NewTransport(nil)
	Log       *zap.Logger       // nil: silent
	Recorder  Recorder          // nil: none
}

// Format implements [fmt.Formatter], for the URLs may hold secrets in their queries.
func (c Config) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "client %s at %s", c.ClientID, publicURL(c.TokenURL))
}

// MarshalText is how JSON and zap print it.
func (c Config) MarshalText() ([]byte, error) { return fmt.Append(nil, c), nil }

// Client asks for tokens. It implements [tokencache.Grants] and is safe for
// concurrent use.
type Client struct{ cfg Config }

// Format implements [fmt.Formatter], as Config does.
func (c *Client) Format(f fmt.State, verb rune) { c.cfg.Format(f, verb) }

// New returns a Client. TokenURL must be set, and ClientSecret unless Auth
// makes no use of it.
func New(cfg Config) *Client {
	cfg.RefreshURL = cmp.Or(cfg.RefreshURL, cfg.TokenURL)
	cfg.Timeout = cmp.Or(cfg.Timeout, defaultTimeout)
	if cfg.ClientSecret == nil {
		cfg.ClientSecret = func() (tokencache.Secret, error) { return tokencache.Secret{}, nil }
	}
	if cfg.Parameters == nil {
		cfg.Parameters = func() url.Values { return nil }
	}
	if cfg.Header == nil {
		cfg.Header = func() http.Header { return nil }
	}
	if cfg.Auth == nil {
		cfg.Auth = ClientSecretPost
	}
	if cfg.Encoding == nil {
		cfg.Encoding = Form
	}
	if cfg.Transport == nil {
		cfg.Transport = NewTransport(nil)
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Recorder == nil {
		cfg.Recorder = noRecorder{}
	}
	return &Client{cfg}
}

type noRecorder struct{}

func (noRecorder) ExpiryAnomaly(string)    {}
func (noRecorder) ClockSkew(time.Duration) {}

// NewTransport returns a transport that suits token requests: rare, small and
// secret. It uses no connection twice, so that a refresh token is never lost
// to a connection the server has just closed, it does not decompress, and it
// heeds no proxy but the one given (nil: none).
func NewTransport(proxy func(*http.Request) (*url.URL, error)) *http.Transport {
	return &http.Transport{
		Proxy:                  proxy,
		DialContext:            (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		TLSHandshakeTimeout:    5 * time.Second,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// ClientCredentials performs the full grant.
func (c *Client) ClientCredentials(ctx context.Context) (tokencache.Token, error) {
	params := url.Values{"grant_type": {clientCredentials}}
	setUnlessEmpty(params, "scope", c.cfg.Scope)
	setUnlessEmpty(params, "audience", c.cfg.Audience)
	for _, r := range c.cfg.Resource {
		params.Add("resource", r)
	}
	return c.exchange(ctx, c.cfg.TokenURL, clientCredentials, params, true)
}

// RefreshToken exchanges a refresh token for a new pair. If the server sends
// no new refresh token the old one goes on (RFC 6749 section 6).
func (c *Client) RefreshToken(ctx context.Context, old tokencache.Secret) (tokencache.Token, error) {
	params := url.Values{"grant_type": {refreshToken}, "refresh_token": {old.Reveal()}}
	token, err := c.exchange(ctx, c.cfg.RefreshURL, refreshToken, params, !c.cfg.RefreshWithoutAuth)
	if err == nil && token.Refresh.IsZero() {
		token.Refresh = old
	}
	return token, err
}

func setUnlessEmpty(params url.Values, name, value string) {
	if value != "" { // RFC 6749 section 3.2: empty means omitted
		params.Set(name, value)
	}
}

func (c *Client) exchange(ctx context.Context, endpoint *url.URL, grantType string, params url.Values, authenticate bool) (tokencache.Token, error) {
	at := location{endpoint: publicURL(endpoint), grantType: grantType}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	header, body, err := c.request(params, authenticate)
	if err != nil {
		return tokencache.Token{}, at.secretUnreadable()
	}
	sent := time.Now()
	answer, err := c.roundTrip(ctx, at, endpoint, header, body)
	if err != nil {
		return tokencache.Token{}, err
	}
	now, skew := c.cfg.Expiry.reference(answer.header, sent)
	fields, err := at.judge(answer, now)
	if err != nil {
		return tokencache.Token{}, err
	}
	c.cfg.Recorder.ClockSkew(skew)
	c.noteScope(fields, grantType)
	return c.token(fields, sent, now), nil
}

func (c *Client) request(own url.Values, authenticate bool) (http.Header, []byte, error) {
	header := http.Header{}
	for name, values := range c.cfg.Header() {
		header[http.CanonicalHeaderKey(name)] = slices.Clone(values)
	}
	params := maps.Clone(c.cfg.Parameters())
	if params == nil {
		params = url.Values{}
	}
	maps.Copy(params, own)
	if authenticate {
		secret, err := c.cfg.ClientSecret()
		if err != nil {
			return nil, nil, err
		}
		c.cfg.Auth(c.cfg.ClientID, secret, params, header)
	}
	contentType, body := c.cfg.Encoding(params)
	header.Set("Content-Type", contentType)
	header.Set("Accept", "application/json")
	return header, body, nil
}

// answer is what came back, whatever it is.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// roundTrip sends one request, and neither follows redirects (they would take
// the credentials along) nor retries.
func (c *Client) roundTrip(ctx context.Context, at location, endpoint *url.URL, header http.Header, body []byte) (answer, error) {
	var connected, handshakeFailed atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:          func(httptrace.GotConnInfo) { connected.Store(true) },
		TLSHandshakeDone: func(_ tls.ConnectionState, err error) { handshakeFailed.Store(err != nil) },
	})
	failed := func(err error) error {
		if errors.Is(ctx.Err(), context.Canceled) {
			return ctx.Err()
		}
		return at.broken(err, connected.Load(), handshakeFailed.Load(), ctx.Err() != nil)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint.String(), bytes.NewReader(body))
	if err != nil {
		return answer{}, failed(err)
	}
	req.Header = header
	req.GetBody = nil // the transport must not send it twice of its own accord
	resp, err := c.cfg.Transport.RoundTrip(req)
	if err != nil {
		return answer{}, failed(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return answer{status: resp.StatusCode}, nil // the body is the bare connection, which no deadline reaches
	}
	content, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil && resp.StatusCode < 300 {
		return answer{}, failed(err)
	}
	return answer{resp.StatusCode, resp.Header, content}, nil
}

// token makes a Token of an answer that judge has accepted. It was asked for
// at sent by our clock, which is now by the clock that absolute times go by.
func (c *Client) token(f fields, sent, now time.Time) tokencache.Token {
	life := c.cfg.Expiry.lifetime(f, now)
	c.noteExpiry(life)

	token := tokencache.Token{
		Access:    tokencache.NewSecret(f.text("access_token")),
		Refresh:   tokencache.NewSecret(f.text("refresh_token")),
		Issued:    sent,
		Expiry:    sent.Add(life.remaining),
		Lifetime:  c.cfg.Expiry.planned(life.remaining),
		RefreshIn: f.seconds("refresh_in"),
	}
	if r := c.cfg.Expiry.refreshLifetime(f, now); r > 0 {
		token.RefreshExpiry = sent.Add(r)
	}
	return token
}

func (c *Client) noteExpiry(life lifetime) {
	for _, kind := range life.anomalies {
		c.cfg.Recorder.ExpiryAnomaly(kind)
	}
	if len(life.anomalies) > 0 {
		c.cfg.Log.Warn("the token endpoint states an expiry that cannot be right; if this persists set EXPIRES_IN_FORMAT",
			zap.Strings("anomalies", life.anomalies), zap.Duration("assumed_lifetime", life.remaining), zap.String("source", life.source))
	}
}

// noteScope tells when less was granted than asked for, as servers may do
// without an error (RFC 6749 section 3.3).
func (c *Client) noteScope(f fields, grantType string) {
	granted, told := f.scope()
	if !told || grantType != clientCredentials {
		return
	}
	missing := slices.DeleteFunc(splitScope(c.cfg.Scope), func(s string) bool { return slices.Contains(granted, s) })
	if len(missing) > 0 {
		c.cfg.Log.Warn("the authorization server did not grant all of SCOPE", zap.Strings("missing", missing))
	}
}

func splitScope(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == ',' })
}

// publicURL is u as it may be shown: without user, query and fragment, which
// may hold secrets.
func publicURL(u *url.URL) string {
	if u == nil {
		return ""
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}
