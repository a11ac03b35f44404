package forward

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"

	"github.com/exeat-dev/exeat/allowlist"
)

// answerError says what is wrong with an answer. Of the answer, its text contains only
// numbers and names of known fields.
type answerError struct {
	cause allowlist.Cause
	text  string
}

// Error implements error.
func (e *answerError) Error() string { return e.text }

// unexpectedStatus returns the error for a final answer with a status below 200.
func unexpectedStatus(status int) error {
	if status == http.StatusSwitchingProtocols {
		return &answerError{allowlist.CauseUpgrade, "the origin switched to a protocol that nobody had asked for"}
	}
	return &answerError{allowlist.CauseProtocol, "the answer has a status of less than three digits"}
}

// noAnswerError returns the error for an exchange without an answer, with the address of
// the origin. It replaces errors of net/http, because they quote the answer.
func (r *run) noAnswerError(err error) error {
	if r.upstream == nil {
		return err
	}
	known, ok := errors.AsType[*answerError](err)
	if !ok {
		known = explainError(r, err)
	}
	return &allowlist.ReasonError{
		Reason: allowlist.ResponseFailed, Cause: known.cause, Err: fmt.Errorf("%s: %w", r.upstream.dialed.Addr, known),
	}
}

// explainError explains an error of the transport by the bytes that came from the origin
// and by the end of the connection.
func explainError(r *run, err error) *answerError {
	begun, ended := r.heads.partialLen(), r.upstream.readError()
	number, reset := errors.AsType[syscall.Errno](errors.Join(ended, err))
	how := "closed the connection"
	if reset {
		how = number.Error()
	}
	switch {
	case begun >= maxAnswerHead:
		return &answerError{allowlist.CauseAnswerHead, fmt.Sprintf("the head of the answer is larger than %d bytes", maxAnswerHead)}
	case begun > 0 && (ended != nil || reset): // the rest of the head was missing
		return &answerError{allowlist.CauseIncomplete, fmt.Sprintf("%s after %d bytes of the head of an answer", how, begun)}
	case errors.Is(ended, errUnsolicited):
		return &answerError{allowlist.CauseProtocol, errUnsolicited.Error()}
	case begun > 0:
		return &answerError{allowlist.CauseProtocol, "what came is no answer of HTTP/1"}
	case ended != nil || reset:
		return &answerError{allowlist.CauseTerminated, how + " without an answer"}
	}
	return &answerError{allowlist.NoCause, (&unquotedError{err}).Error()}
}

// unquotedError is an error without the bytes that it quotes: net/http and net/textproto
// quote what was sent, such as a line of a trailer.
type unquotedError struct{ err error }

// Error implements error.
func (e *unquotedError) Error() string {
	text, _, _ := strings.Cut(e.err.Error(), `"`)
	return strings.TrimRight(text, ": ")
}

// Unwrap returns the error itself.
func (e *unquotedError) Unwrap() error { return e.err }

// timeoutError returns the error for an answer that did not come in time, with the
// address of the origin.
func timeoutError(r *run, err error) error {
	if r.upstream == nil {
		return err
	}
	text := fmt.Sprintf("no answer within %v", r.cfg.Response)
	if errors.Is(err, errIdle) {
		text = fmt.Sprintf("nothing has moved for %v, or the request has lasted for %v", r.cfg.Idle, r.cfg.Max)
	}
	return fmt.Errorf("%s: %s", r.upstream.dialed.Addr, text)
}

// incompleteError returns the error for an answer that was not sent completely.
func (r *run) incompleteError() error {
	if body := r.body.failure(); body != nil {
		return fmt.Errorf("reading the body of the request: %w", body.Err)
	}
	switch {
	case r.failure != nil:
		return r.failure
	case r.down.err != nil:
		return fmt.Errorf("writing to the client: %w", r.down.err)
	case r.answerErr != nil && r.upstream == nil:
		return fmt.Errorf("reading the answer: %w", &unquotedError{r.answerErr})
	case r.answerErr != nil && !errors.Is(r.answerErr, context.Canceled):
		return fmt.Errorf("reading from %s: %w", r.upstream.dialed.Addr, &unquotedError{r.answerErr})
	}
	return errors.New("the exchange was ended")
}
