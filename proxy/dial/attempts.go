package dial

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"github.com/exeat-dev/exeat/allowlist"
)

// maxTold is how many attempts an error tells of.
const maxTold = 4

// attemptsError is what came of several addresses, each with its error.
type attemptsError struct {
	errs    []error
	untried int // number of addresses that were not tried
}

// Error tells of the first attempts, and how many more there were.
func (e *attemptsError) Error() string {
	var texts []string
	for _, err := range e.errs[:min(len(e.errs), maxTold)] {
		texts = append(texts, err.Error())
	}
	if more := len(e.errs) - maxTold; more > 0 {
		texts = append(texts, fmt.Sprintf("%d more", more))
	}
	if e.untried > 0 {
		texts = append(texts, fmt.Sprintf("%d not tried", e.untried))
	}
	return strings.Join(texts, "; ")
}

// Unwrap returns the errors of all attempts.
func (e *attemptsError) Unwrap() []error { return e.errs }

// attemptError is what came of one address.
type attemptError struct {
	addr netip.AddrPort
	err  error
}

// Error says it in the words of the system, without what a socket adds to them.
func (e *attemptError) Error() string {
	var text string
	number, known := errors.AsType[syscall.Errno](e.err)
	refused, closed := errors.AsType[*allowlist.AddrError](e.err)
	switch {
	case closed:
		return refused.Error()
	case known:
		text = number.Error()
	case errors.Is(e.err, context.DeadlineExceeded), errors.Is(e.err, os.ErrDeadlineExceeded):
		text = "no answer in time"
	case errors.Is(e.err, context.Canceled):
		text = "given up"
	default:
		text = e.err.Error()
	}
	return e.addr.String() + ": " + text
}

// Unwrap returns the cause.
func (e *attemptError) Unwrap() error { return e.err }
