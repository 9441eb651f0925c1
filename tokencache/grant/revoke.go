package grant

import (
	"context"
	"errors"
	"net/url"

	"github.com/token-sidecar/token-sidecar/tokencache"
)

const revocation = "revocation" // in place of a grant's type

// Revoke asks the server to forget a pair of tokens (RFC 7009), first the one
// that could bring others. The client proves itself as it does for a grant.
func (c *Client) Revoke(ctx context.Context, pair tokencache.Token) error {
	if c.cfg.RevocationURL == nil {
		return nil
	}
	return errors.Join(
		c.revoke(ctx, pair.Refresh, "refresh_token"),
		c.revoke(ctx, pair.Access, "access_token"))
}

func (c *Client) revoke(ctx context.Context, token tokencache.Secret, kind string) error {
	if token.IsZero() {
		return nil
	}
	at := location{publicURL(c.cfg.RevocationURL), revocation}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	header, body, err := c.request(url.Values{"token": {token.Reveal()}, "token_type_hint": {kind}}, true)
	if err != nil {
		return at.secretUnreadable()
	}
	answer, err := c.roundTrip(ctx, at, c.cfg.RevocationURL, header, body)
	if err != nil || answer.status >= 200 && answer.status < 300 { // section 2.2: for an unknown token as well
		return err
	}
	e := at.error(answer.status, at.judgeFailure(answer.status).reason, "the "+kind+" is not revoked: check REVOCATION_URL and what this client may do", nil)
	f, _ := parseFields(answer.body)
	e.Code = knownCode(f.text("error"))
	return e
}
