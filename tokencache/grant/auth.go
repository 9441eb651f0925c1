package grant

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/token-sidecar/token-sidecar/tokencache"
)

// A ClientAuth puts the client's credentials into a token request: into the
// parameters of its body or into its header (RFC 6749 section 2.3).
type ClientAuth func(id string, secret tokencache.Secret, params url.Values, header http.Header)

// ClientSecretPost sends the credentials as body parameters
// (RFC 6749 section 2.3.1), in whatever encoding the body has.
func ClientSecretPost(id string, secret tokencache.Secret, params url.Values, _ http.Header) {
	setUnlessEmpty(params, "client_id", id)
	setUnlessEmpty(params, "client_secret", secret.Reveal())
}

// ClientSecretBasic sends them by HTTP Basic, each form-encoded first, as
// RFC 6749 section 2.3.1 demands.
func ClientSecretBasic(id string, secret tokencache.Secret, _ url.Values, header http.Header) {
	setBasic(header, url.QueryEscape(id), url.QueryEscape(secret.Reveal()))
}

// ClientSecretBasicRaw sends them by HTTP Basic as they are, for the servers
// that skip that step. Only secrets beyond letters and digits show the difference.
func ClientSecretBasicRaw(id string, secret tokencache.Secret, _ url.Values, header http.Header) {
	setBasic(header, id, secret.Reveal())
}

// NoClientAuth sends client_id alone (RFC 6749 section 3.2.1), for clients
// that prove themselves by other parameters, or by the certificate of their
// connection (RFC 8705 section 2).
func NoClientAuth(id string, _ tokencache.Secret, params url.Values, _ http.Header) {
	setUnlessEmpty(params, "client_id", id)
}

func setBasic(header http.Header, user, password string) {
	header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
}

var clientAuths = map[string]ClientAuth{
	"client_secret_post":      ClientSecretPost,
	"client_secret_basic":     ClientSecretBasic,
	"client_secret_basic_raw": ClientSecretBasicRaw,
	"tls_client_auth":         NoClientAuth,
	"none":                    NoClientAuth,
}

// UnmarshalText parses the method's name as in RFC 7591 section 2.
func (a *ClientAuth) UnmarshalText(text []byte) (err error) {
	*a, err = named(clientAuths, string(text))
	return err
}

func named[T any](choices map[string]T, name string) (T, error) {
	choice, ok := choices[name]
	if !ok {
		return choice, fmt.Errorf("want one of %s", strings.Join(slices.Sorted(maps.Keys(choices)), ", "))
	}
	return choice, nil
}
