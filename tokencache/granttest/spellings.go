package granttest

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"strconv"
	"strings"
)

// Spellings returns the ways in which secrets may turn up in a text, so that a
// test can look for all of them: as they are, escaped for a URL or for quotes,
// in JSON, in JSON within JSON, in base64 and in hexadecimal. What is encoded
// together is a secret of its own, such as id:secret in HTTP Basic.
func Spellings(secrets ...string) []string {
	var all []string
	for _, s := range secrets {
		octets, once := []byte(s), inJSON(s)
		all = append(all, s, url.QueryEscape(s), url.PathEscape(s), unquoted(strconv.Quote(s)), once, inJSON(once),
			base64.RawStdEncoding.EncodeToString(octets), base64.RawURLEncoding.EncodeToString(octets), // which begin the padded ones
			hex.EncodeToString(octets), strings.ToUpper(hex.EncodeToString(octets)))
	}
	return all
}

func inJSON(s string) string {
	quoted, _ := json.Marshal(s)
	return unquoted(string(quoted))
}

func unquoted(s string) string { return s[1 : len(s)-1] }
