package granttest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
)

// authenticate returns the id of the client, RFC 6749 section 2.3.1; it is
// empty for a refresh that need not say.
func (s *Server) authenticate(r *http.Request, params map[string]string) (string, *refusal) {
	inHeader, inBody := r.Header.Get("Authorization") != "", params["client_secret"] != ""
	if inHeader && inBody {
		return "", malformed("client authentication in header and body at once")
	}
	if s.RefreshWithoutClient && params["grant_type"] == "refresh_token" && !inHeader && !inBody {
		return "", nil
	}
	id, secret := params["client_id"], params["client_secret"]
	if inHeader {
		id, secret, _ = r.BasicAuth()
	}
	switch {
	case s.ClientID == "":
		return id, nil
	case s.isClient(id, secret), inHeader && s.isClient(unescape(id), unescape(secret)):
		return s.ClientID, nil
	}
	return "", &refusal{status: cmp.Or(s.RefusedClient, http.StatusUnauthorized),
		code: "invalid_client", text: "client_id or client_secret is wrong."}
}

func (s *Server) isClient(id, secret string) bool {
	return id == s.ClientID && secret == s.ClientSecret
}

func unescape(v string) string {
	if plain, err := url.QueryUnescape(v); err == nil {
		return plain
	}
	return v
}

// params returns the parameters of a token request for one of our two grants.
// None has an empty value, which is as good as none (RFC 6749 section 3.2).
func (s *Server) params(r *http.Request) (map[string]string, *refusal) {
	for _, name := range []string{"client_id", "client_secret", "refresh_token"} {
		if r.URL.Query().Has(name) {
			return nil, malformed(name + " in the URI") // RFC 6749 section 2.3.1
		}
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, malformed("unreadable body")
	}
	encoding, params, err := parse(r.Header.Get("Content-Type"), body)
	switch {
	case err != nil:
		return nil, malformed(err.Error())
	case s.Accept != Any && s.Accept != encoding:
		return nil, malformed("encoding of the body not accepted")
	case params["grant_type"] == "refresh_token" && params["refresh_token"] == "":
		return nil, malformed("refresh_token is missing")
	}
	switch params["grant_type"] {
	case "client_credentials", "refresh_token":
		return params, nil
	case "":
		return nil, malformed("grant_type is missing")
	}
	return nil, &refusal{status: http.StatusBadRequest, code: "unsupported_grant_type",
		text: "grant_type is neither client_credentials nor refresh_token."}
}

// grantType returns the grant_type of a request, if it can be made out.
func grantType(r *http.Request, body []byte) string {
	_, params, _ := parse(r.Header.Get("Content-Type"), body)
	return params["grant_type"]
}

func parse(contentType string, body []byte) (Encoding, map[string]string, error) {
	kind, _, _ := mime.ParseMediaType(contentType)
	switch kind {
	case "application/x-www-form-urlencoded":
		params, err := parseForm(body)
		return Form, params, err
	case "application/json":
		params, err := parseJSON(body)
		return JSON, params, err
	}
	return Any, nil, errors.New("body is neither form nor JSON")
}

func parseForm(body []byte) (map[string]string, error) {
	values, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, errors.New("malformed form")
	}
	params := map[string]string{}
	for name, v := range values {
		if len(v) > 1 && name != "resource" { // the one that may, RFC 8707 section 2
			return nil, fmt.Errorf("repeated parameter %q", name)
		}
		params[name] = v[0]
	}
	return params, nil
}

// parseJSON goes member by member, for json.Unmarshal does not mind repeated names.
func parseJSON(body []byte) (map[string]string, error) {
	if !json.Valid(body) || bytes.TrimSpace(body)[0] != '{' {
		return nil, errors.New("malformed JSON")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	_, _ = dec.Token() // {
	params := map[string]string{}
	for dec.More() {
		key, _ := dec.Token()
		name := key.(string)
		if _, ok := params[name]; ok {
			return nil, fmt.Errorf("repeated parameter %q", name)
		}
		var value any
		_ = dec.Decode(&value)
		params[name], _ = value.(string)
	}
	return params, nil
}
