package monitoring

import (
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"testing"
)

// A selector is one mention of a metric in a PromQL expression.
type selector struct {
	metric   string
	matchers []matcher
}

type matcher struct{ label, op, value string }

var (
	tokens   = regexp.MustCompile(`"(?:\\.|[^"\\])*"|\[[^\]]*\]|[a-zA-Z_:][\w:]*|[0-9][\w.]*|=~|!~|[=!<>]=|\S`)
	word     = regexp.MustCompile(`^[a-zA-Z_:]`)
	grouping = []string{"by", "without", "on", "ignoring", "group_left", "group_right"}
	keywords = []string{"and", "or", "unless", "bool", "offset", "atan2"}
)

// scan returns the selectors of expr, and the labels that it groups or matches
// by. That expr is correct is for promtool to say.
func scan(expr string) (selectors []selector, grouped []string) {
	rest := append(tokens.FindAllString(expr, -1), "")
	for ; len(rest) > 1; rest = rest[1:] {
		switch next := rest[1]; {
		case !word.MatchString(rest[0]), slices.Contains(keywords, rest[0]):
		case slices.Contains(grouping, rest[0]) && next == "(":
			end := slices.Index(rest, ")")
			grouped = append(grouped, slices.DeleteFunc(slices.Clone(rest[2:end]), func(s string) bool { return s == "," })...)
			rest = rest[end:]
		case slices.Contains(grouping, rest[0]), next == "(", next == "by", next == "without": // a modifier, a function
		case next == "{":
			end := slices.Index(rest, "}")
			selectors = append(selectors, selector{rest[0], matchersOf(rest[2:end])})
			rest = rest[end:]
		default:
			selectors = append(selectors, selector{metric: rest[0]})
		}
	}
	return selectors, grouped
}

func matchersOf(tokens []string) (all []matcher) {
	for ; len(tokens) >= 3; tokens = tokens[min(4, len(tokens)):] { // label, operator, value, comma
		value, _ := strconv.Unquote(tokens[2])
		all = append(all, matcher{tokens[0], tokens[1], value})
	}
	return all
}

func TestScanFindsEveryMetricAndLabel(t *testing.T) {
	selectors, grouped := scan(`
		sum by (le, code) (rate(a_total{code=~"5..", path="by (x) {y=\"z\"}"}[5m:30s] offset 1h)) / on (pod) group_left (team) b:c
		  > bool 1e3 or absent(d{}) unless count without (kind) (e - time()) and f`)
	want := []selector{
		{"a_total", []matcher{{"code", "=~", "5.."}, {"path", "=", `by (x) {y="z"}`}}},
		{"b:c", nil}, {"d", nil}, {"e", nil}, {"f", nil},
	}
	if !reflect.DeepEqual(selectors, want) {
		t.Errorf("selectors: got %q, want %q", selectors, want)
	}
	if want := []string{"le", "code", "pod", "team", "kind"}; !slices.Equal(grouped, want) {
		t.Errorf("labels: got %q, want %q", grouped, want)
	}
}
