package grant

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// parseRetryAfter reads a Retry-After header in either form of RFC 9110
// section 10.2.3, seconds or a date by the clock of now; 0 if it is missing,
// past or unreadable.
func parseRetryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	if n, err := strconv.ParseFloat(value, 64); err == nil && n > 0 { // false for NaN
		return seconds(n)
	}
	if t, err := http.ParseTime(value); err == nil {
		return min(max(0, t.Sub(now)), longest)
	}
	return 0
}
