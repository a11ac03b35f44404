package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/refusal"
)

// tries decides whether a request is sent to another gateway, which happens once at most.
type tries struct {
	uplink *Uplink
	// again says that a request can be sent again although a gateway may have looked at it,
	// because nothing of it can have reached an origin.
	again bool

	used    bool              // the request was sent to another gateway
	avoid   *endpoint         // the gateway that has not taken the request; nil if there is none
	refused *refusal.Response // its refusal; nil if there is none
	err     error             // why there is no answer; nil if there is a refusal
}

// failed notes that a stream has ended without an answer, and reports whether to try again.
func (t *tries) failed(s *stream, err error) bool {
	_ = s.Close()
	reset, isReset := errors.AsType[*h2.ResetError](err)
	notTaken := errors.Is(err, h2.ErrNotTaken) || isReset && reset.Code == http2.ErrCodeRefusedStream
	if !isReset && !errors.Is(err, context.DeadlineExceeded) {
		t.uplink.retire(s.session) // the connection has ended, or takes no streams
	}
	if t.refused == nil {
		t.err = fmt.Errorf("the gateway %s has not answered: %w", s.session.endpoint.address, err)
	}
	if t.used || !notTaken && (!t.again || isReset) {
		return false
	}
	t.used, t.avoid = true, s.session.endpoint
	return true
}

// refusedBy notes the refusal of a gateway, and reports whether to try again: a gateway that
// is busy or shutting down has sent nothing.
func (t *tries) refusedBy(s *stream, resp refusal.Response) bool {
	_ = s.Close()
	t.refused, t.err = &resp, nil
	if t.used || resp.Status != http.StatusServiceUnavailable {
		return false
	}
	for _, f := range resp.Fields {
		if status, ok := refusal.ParseStatus(f.Value); f.Name == "Proxy-Status" && ok && status.Reason != "" && status.Reason != "busy" && status.Reason != "draining" {
			return false
		}
	}
	t.uplink.retire(s.session)
	t.used, t.avoid = true, s.session.endpoint
	return true
}

// ask sends a request with a body, or a CONNECT without one, and waits for its answer. It
// returns the stream if the status of the answer is 200, and otherwise the refusal or why
// there is no answer.
func (a *Agent) ask(ctx context.Context, fields []h2.Field, body []byte) (*stream, *refusal.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	t := &tries{uplink: a.uplink, again: true}
	for {
		s, err := a.uplink.open(ctx, fields, false, t.avoid)
		if err != nil {
			if t.refused != nil { // there is no other gateway
				return nil, t.refused, nil
			}
			return nil, nil, err
		}
		head, err := answerTo(ctx, s, body)
		switch {
		case err != nil:
			if t.failed(s, err) {
				continue
			}
		case head.Get(":status") == "200":
			return s, nil, nil
		default:
			if t.refusedBy(s, readRefusal(s, head)) {
				continue
			}
		}
		return nil, t.refused, t.err
	}
}

// answerTo sends the body of a request, if it has one, and waits for the head of the final
// answer.
func answerTo(ctx context.Context, s *stream, body []byte) (h2.Head, error) {
	if body != nil {
		_ = s.SetWriteDeadline(time.Now().Add(earlyTimeout)) // a stream takes any deadline
		if _, err := s.Write(body); err != nil {
			return h2.Head{}, err
		}
		if err := s.CloseWrite(); err != nil {
			return h2.Head{}, err
		}
	}
	for {
		head, err := s.Answer(ctx)
		if err != nil || statusOf(head) >= http.StatusOK {
			return head, err
		}
	}
}

// statusOf returns the status of an answer, 500 if it has none.
func statusOf(head h2.Head) int {
	status, err := strconv.Atoi(head.Get(":status"))
	if err != nil || status < 100 || status > 999 {
		return http.StatusInternalServerError
	}
	return status
}

// readRefusal reads the rest of a refusal.
func readRefusal(s *stream, head h2.Head) refusal.Response {
	fields := make([]refusal.Field, 0, len(head.Fields))
	for _, f := range head.Fields {
		fields = append(fields, refusal.Field{Name: f.Name, Value: f.Value})
	}
	var body []byte
	if !head.End {
		_ = s.SetReadDeadline(time.Now().Add(earlyTimeout))        // as above
		body, _ = io.ReadAll(io.LimitReader(s.Stream, maxRefusal)) // what has come of it is shown
	}
	return refusal.Rebuild(statusOf(head), fields, body)
}
