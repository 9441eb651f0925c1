package proxy

import (
	"cmp"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"
)

const (
	// defaultIdleTimeout is below the shortest that servers are known to
	// keep idle connections for (Node.js: 5 s). Whoever closes first decides
	// whether a POST can meet a closing connection, which nobody may repeat.
	defaultIdleTimeout = 4 * time.Second
	// defaultConnectTimeout bounds dialling, and the TLS handshake again.
	defaultConnectTimeout = 5 * time.Second

	// No connection in use is given up for want of room in the pool: to dial
	// anew costs more than the request itself.
	maxIdle = 1024

	// maxAnswerHead is more than servers and proxies are known to send, in bytes
	// in HTTP/1.1 and by the count of RFC 9113 section 6.5.2 in HTTP/2. A head
	// takes up to seventy times its size in memory, if all its fields are small.
	maxAnswerHead = 64 << 10
)

// TransportConfig is what may be said about connections to the upstream.
type TransportConfig struct {
	ConnectTimeout time.Duration // 0: defaultConnectTimeout
	// ResponseTimeout bounds the wait for the head of a response after the
	// request is sent; 0: none, for there are long polls.
	ResponseTimeout time.Duration
	IdleTimeout     time.Duration // 0: defaultIdleTimeout
	// MaxConns is the most connections there are at a time; 0: no limit. As
	// many as requests in flight are enough, but without a limit a slow
	// network makes for more: a request dials, and takes another's connection
	// while that is under way.
	MaxConns int
	// PlainHTTP2 says that an http upstream takes HTTP/2, and nothing else.
	PlainHTTP2 bool
	// Proxy is as in [http.Transport]; nil: no proxy, whatever the
	// environment says, since a proxy named by it would get the tokens.
	Proxy func(*http.Request) (*url.URL, error)
}

// NewTransport returns a transport made for one upstream.
func NewTransport(cfg TransportConfig) *http.Transport {
	connect := cmp.Or(cfg.ConnectTimeout, defaultConnectTimeout)
	dialer := &net.Dialer{Timeout: connect}
	var protocols *http.Protocols // nil: HTTP/2 if a TLS server has it, else HTTP/1.1
	if cfg.PlainHTTP2 {
		protocols = &http.Protocols{}
		protocols.SetUnencryptedHTTP2(true)
	}
	return &http.Transport{
		Protocols: protocols,
		Proxy:     cfg.Proxy,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil || cfg.PlainHTTP2 {
				return conn, err
			}
			return &upstreamConn{Conn: conn}, nil
		},
		TLSHandshakeTimeout:   connect,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(0)},
		ForceAttemptHTTP2:     true,
		HTTP2:                 &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 5 * time.Second},
		MaxIdleConns:          maxIdle,
		MaxIdleConnsPerHost:   maxIdle,
		MaxConnsPerHost:       cfg.MaxConns,
		IdleConnTimeout:       cmp.Or(cfg.IdleTimeout, defaultIdleTimeout),
		ResponseHeaderTimeout: cfg.ResponseTimeout,
		// The default is 10 MiB.
		MaxResponseHeaderBytes: maxAnswerHead,
		ExpectContinueTimeout:  time.Second,
		// Bodies pass as they are. To unpack them would change them, and cost.
		DisableCompression: true,
	}
}

// An upstreamConn closes the body that is sent on it when it is closed. A
// Transport that speaks HTTP/1.1 reads on until the client sends more, and says
// only then that the upstream has gone. In HTTP/2 it closes bodies itself.
type upstreamConn struct {
	net.Conn
	closed  atomic.Bool
	sending atomic.Pointer[playback]
}

// carry takes p, of which there is one at a time.
func (c *upstreamConn) carry(p *playback) {
	c.sending.Store(p)
	if c.closed.Load() {
		_ = p.Close()
	}
}

func (c *upstreamConn) Close() error {
	c.closed.Store(true)
	if p := c.sending.Load(); p != nil {
		_ = p.Close()
	}
	return c.Conn.Close()
}
