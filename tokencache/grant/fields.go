package grant

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxMembers keeps an answer of 256 KiB from taking 8 MiB to read.
const maxMembers = 1000

var errMalformed = errors.New("neither a JSON object nor a form")

// fields are the members of a token response. Names are case-sensitive, as
// JSON's are and encoding/json's struct fields are not.
type fields map[string]json.RawMessage

// parseFields reads a token response: a JSON object (RFC 6749 section 5.1) or,
// as some servers answer, a form. Whatever can be read in two ways, such as a
// member that occurs twice, is malformed.
func parseFields(body []byte) (fields, error) {
	if len(body) > maxBody {
		return nil, errMalformed
	}
	body = bytes.TrimSpace(body)
	if len(body) == 0 {
		return nil, errMalformed
	}
	if body[0] == '{' {
		return parseObject(body)
	}
	return parseForm(body)
}

func parseObject(body []byte) (fields, error) {
	f, d := fields{}, json.NewDecoder(bytes.NewReader(body))
	_, _ = d.Token() // {
	for d.More() {
		name, _ := d.Token()
		key, ok := name.(string)
		var value json.RawMessage
		if !ok || d.Decode(&value) != nil || f[key] != nil || len(f) == maxMembers {
			return nil, errMalformed
		}
		f[key] = value
	}
	if _, err := d.Token(); err != nil {
		return nil, errMalformed
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errMalformed
	}
	return f, nil
}

func parseForm(body []byte) (fields, error) {
	values, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, errMalformed
	}
	f := fields{}
	for name, v := range values {
		if len(v) != 1 {
			return nil, errMalformed
		}
		f[name], _ = json.Marshal(v[0])
	}
	if f["access_token"] == nil && f["error"] == nil {
		return nil, errMalformed // any line of text parses as a query
	}
	return f, nil
}

// text returns a string member, or "" if there is none.
func (f fields) text(name string) string {
	var s string
	_ = json.Unmarshal(f[name], &s)
	return s
}

// refuses reports whether a response of status 2xx is an error all the same.
func (f fields) refuses() bool { return !f.blank("error") || !f.blank("errcode") }

// blank reports whether a member is missing or says nothing.
func (f fields) blank(name string) bool {
	return slices.Contains([]string{"", "null", "false", "0", `""`, `"0"`}, string(f[name]))
}

// scope returns the granted scope, a string or a list, and whether there is one.
func (f fields) scope() ([]string, bool) {
	var list []string
	if json.Unmarshal(f["scope"], &list) == nil && list != nil {
		return list, true
	}
	s := f.text("scope")
	return splitScope(s), s != ""
}

// seconds returns a member that counts seconds, 0 if it makes no sense.
func (f fields) seconds(name string) time.Duration {
	if q := parseQuantity(f[name]); q.isNumber() && q.number > 0 {
		return seconds(q.number)
	}
	return 0
}

// longest is as far as any expiry is followed: enough for every honest claim,
// and far from where durations overflow.
const longest = 10 * 365 * 24 * time.Hour

// seconds converts s, rounded down, and at most longest.
func seconds(s float64) time.Duration {
	return time.Duration(math.Min(math.Floor(s), longest.Seconds())) * time.Second
}

// A quantity is what a member that speaks of time holds: a number, in a unit
// yet to be found, or a point in time, or nothing that can be understood.
type quantity struct {
	kind   quantityKind
	number float64
	time   time.Time
}

type quantityKind int

const (
	absent quantityKind = iota
	unreadable
	number
	duration // number in seconds
	instant
)

func (q quantity) isNumber() bool { return q.kind == number || q.kind == duration }

func parseQuantity(raw json.RawMessage) quantity {
	if len(raw) == 0 || string(raw) == "null" {
		return quantity{}
	}
	s := string(raw)
	if raw[0] == '"' {
		s = ""
		_ = json.Unmarshal(raw, &s)
		if s = strings.TrimSpace(s); s == "" {
			return quantity{}
		}
	}
	if n, err := strconv.ParseFloat(s, 64); err == nil && !math.IsNaN(n) && !math.IsInf(n, 0) {
		return quantity{kind: number, number: n}
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return quantity{kind: instant, time: t}
	}
	if d, err := time.ParseDuration(s); err == nil {
		return quantity{kind: duration, number: d.Seconds()}
	}
	return quantity{kind: unreadable}
}
