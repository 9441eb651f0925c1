package grant

import (
	"encoding/json"
	"net/url"
)

// An Encoding writes the parameters of a token request as a body.
type Encoding func(params url.Values) (contentType string, body []byte)

// Form is the encoding of RFC 6749 appendix B.
func Form(params url.Values) (string, []byte) {
	return "application/x-www-form-urlencoded", []byte(params.Encode())
}

// JSON is a common departure from it: one object, a string for each
// parameter, a list where a parameter occurs more than once.
func JSON(params url.Values) (string, []byte) {
	object := make(map[string]any, len(params))
	for name, values := range params {
		if object[name] = values; len(values) == 1 {
			object[name] = values[0]
		}
	}
	body, _ := json.Marshal(object) // strings and lists of strings always marshal
	return "application/json", body
}

var encodings = map[string]Encoding{"form": Form, "json": JSON}

// UnmarshalText parses "form" or "json".
func (e *Encoding) UnmarshalText(text []byte) (err error) {
	*e, err = named(encodings, string(text))
	return err
}
