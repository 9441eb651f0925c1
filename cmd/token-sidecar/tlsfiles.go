package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/token-sidecar/token-sidecar/proxy"
)

// tlsFiles say by whom a server's certificate may be signed, and what we show
// it for a certificate of our own. Each may be empty.
type tlsFiles struct{ ca, cert, key string }

// identity is what tlsFiles hold. Roots of nil are the system's.
type identity struct {
	roots        *x509.CertPool
	certificates []tls.Certificate
}

// read returns what the files hold, and a sum by which it can be told from
// other contents.
func (f tlsFiles) read() (identity, [sha256.Size]byte, error) {
	var contents [3][]byte
	var err error
	sum := sha256.New()
	for i, path := range []string{f.ca, f.cert, f.key} {
		if path != "" {
			content, fault := readSetting(path)
			contents[i], err = []byte(content), cmp.Or(err, fault)
		}
		fmt.Fprintf(sum, "%d\n%s", len(contents[i]), contents[i])
	}
	var id identity
	if err == nil {
		id, err = f.parse(contents[0], contents[1], contents[2])
	}
	return id, [sha256.Size]byte(sum.Sum(nil)), err
}

func (f tlsFiles) parse(ca, cert, key []byte) (id identity, err error) {
	if f.ca != "" {
		if id.roots, err = parseRoots(ca); err != nil {
			return id, fmt.Errorf("%s: %w", f.ca, err)
		}
	}
	if f.cert != "" {
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return id, fmt.Errorf("%s, %s: %w", f.cert, f.key, err)
		}
		id.certificates = []tls.Certificate{pair}
	}
	return id, nil
}

// parseRoots takes a bundle as a whole or not at all, for it may be half written.
func parseRoots(bundle []byte) (*x509.CertPool, error) {
	roots, found := x509.NewCertPool(), 0
	blocks := bytes.Count(bundle, []byte("-----BEGIN")) // Decode passes over those that it cannot read
	for {
		block, rest := pem.Decode(bundle)
		if block == nil {
			break
		}
		bundle = rest
		blocks--
		if block.Type != "CERTIFICATE" {
			continue
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		roots.AddCert(certificate)
		found++
	}
	switch {
	case blocks > 0:
		return nil, errors.New("holds a block that is cut off or damaged")
	case found == 0:
		return nil, errors.New("holds no PEM certificate")
	}
	return roots, nil
}

// check tells what is wrong with the files, by the variables that name them.
func (f tlsFiles) check(faults faults, leg string) {
	if (f.cert == "") != (f.key == "") {
		faults.add(leg+"_CERT_FILE", "and "+leg+"_KEY_FILE must be set both, or neither")
		f.cert, f.key = "", ""
	}
	_, _, err := tlsFiles{ca: f.ca}.read()
	faults.unless(err == nil, leg+"_CA_FILE", fmt.Sprint(err))
	_, _, err = tlsFiles{cert: f.cert, key: f.key}.read()
	faults.unless(err == nil, leg+"_CERT_FILE", fmt.Sprint(err))
}

// A leg is the way to one server. Its connections are secured by files that
// may be replaced at any time, also by somebody who writes them piece by
// piece: while they cannot be used, what they held before stands.
type leg struct {
	files   tlsFiles
	build   func() *http.Transport
	current atomic.Pointer[http.Transport]
	seen    [sha256.Size]byte // of what the files held that is in use; watch's
}

func newLeg(files tlsFiles, build func() *http.Transport) *leg {
	id, sum, err := files.read()
	if err != nil { // since the configuration was checked: nobody is trusted until that is over
		id = identity{roots: x509.NewCertPool()}
	}
	l := &leg{files: files, build: build, seen: sum}
	l.use(id)
	return l
}

// RoundTrip uses the transport of the moment. One that is replaced serves to
// the end those requests that it has.
func (l *leg) RoundTrip(r *http.Request) (*http.Response, error) {
	return l.current.Load().RoundTrip(r)
}

func (l *leg) use(id identity) (replaced *http.Transport) {
	transport := l.build()
	if id.roots != nil {
		transport.TLSClientConfig.RootCAs = id.roots
	}
	transport.TLSClientConfig.Certificates = id.certificates
	return l.current.Swap(transport)
}

// watch takes up the files when they change, and calls changed, until ctx is done.
func (l *leg) watch(ctx context.Context, log *zap.Logger, changed func()) {
	if l.files == (tlsFiles{}) {
		return
	}
	complain := proxy.OncePerMinute(log)
	poll(ctx, func() {
		id, sum, err := l.files.read()
		if err != nil {
			complain.Warn("certificates have changed and cannot be used: those before stay in use", zap.Error(err))
			return
		}
		if sum == l.seen {
			return
		}
		l.seen = sum
		l.use(id).CloseIdleConnections()
		log.Info("certificates have changed: new connections use them",
			zap.String("ca_file", l.files.ca), zap.String("cert_file", l.files.cert))
		changed()
	})
}
