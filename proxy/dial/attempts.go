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

// maxListed is the number of attempts that the text of an error lists.
const maxListed = 4

// attemptsError holds the errors of the attempts to connect to several addresses.
type attemptsError struct {
	errs    []error
	untried int // number of addresses that were not tried
}

// Error lists the first attempts, and says how many more there were.
func (e *attemptsError) Error() string {
	var texts []string
	for _, err := range e.errs[:min(len(e.errs), maxListed)] {
		texts = append(texts, err.Error())
	}
	if more := len(e.errs) - maxListed; more > 0 {
		texts = append(texts, fmt.Sprintf("%d more", more))
	}
	if e.untried > 0 {
		texts = append(texts, fmt.Sprintf("%d not tried", e.untried))
	}
	return strings.Join(texts, "; ")
}

// Unwrap returns the errors of all attempts.
func (e *attemptsError) Unwrap() []error { return e.errs }

// attemptError is the error of the attempt to connect to one address.
type attemptError struct {
	addr netip.AddrPort
	err  error
}

// Error returns the operating system's text for the error, without the operation and the
// addresses that package net adds to it.
func (e *attemptError) Error() string {
	var text string
	number, known := errors.AsType[syscall.Errno](e.err)
	refused, isRefused := errors.AsType[*allowlist.AddrError](e.err)
	switch {
	case isRefused:
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
