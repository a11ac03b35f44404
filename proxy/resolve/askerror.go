package resolve

import (
	"cmp"
	"errors"
	"strings"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/resolve/wire"
)

// maxTries bounds the number of servers in an AskError.
const maxTries = 3

// AskError says why a question has no answer: how each server that was asked has
// failed. Its text names servers; it is for records and the log.
type AskError struct {
	alias allowlist.Host // the name in the question, if it is the target of an alias
	tries []try          // the last try of each server, the newest one at the end
}

// try is the result of asking one server.
type try struct {
	server string
	text   string
	err    error
}

// add notes the failure of a server, and replaces an earlier one of the same server.
func (e *AskError) add(server, text string, err error) {
	for i := range e.tries {
		if e.tries[i].server == server {
			e.tries = append(e.tries[:i], e.tries[i+1:]...)
			break
		}
	}
	if len(e.tries) == maxTries {
		e.tries = e.tries[1:]
	}
	e.tries = append(e.tries, try{server, text, err})
}

// Error returns the failures of all servers.
func (e *AskError) Error() string {
	var b strings.Builder
	if !e.alias.IsZero() {
		b.WriteString("alias " + visible(e.alias.String()) + ": ")
	}
	for i, t := range e.tries {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString("server " + t.server + ": " + t.text)
	}
	return b.String()
}

// Unwrap returns the error of the last server, which decides the reason.
func (e *AskError) Unwrap() error {
	if len(e.tries) == 0 {
		return nil
	}
	return e.tries[len(e.tries)-1].err
}

// serverError returns the last error response of a server, one with an extended error
// before others. It returns nil if no server sent one.
func (e *AskError) serverError() *wire.ServerError {
	var with, without *wire.ServerError
	for _, t := range e.tries {
		if said, ok := errors.AsType[*wire.ServerError](t.err); ok {
			if without = said; said.Extended.Given {
				with = said
			}
		}
	}
	return cmp.Or(with, without)
}

// forAlias returns the error as that of a question for the target of an alias.
func (e *AskError) forAlias(alias allowlist.Host) *AskError {
	return &AskError{alias: alias, tries: e.tries}
}

// Failure describes a failed look-up, for records and for the caller.
type Failure struct {
	// Detail says what went wrong and which servers were asked, for records. It is
	// printable text of bounded length, or "" if there is nothing to say.
	Detail string
	// RCode is the word for a server's response code, such as SERVFAIL, or "" if no
	// server sent one.
	RCode string
	// Extended is the extended error of a server, if HasExtended is set. It is one that
	// may be sent to callers.
	Extended    uint16
	HasExtended bool
}

// FailureOf returns the description of an error of Lookup or Resolve, and the zero
// value for any other error.
func FailureOf(err error) Failure {
	if limit.NoDescriptor(err) {
		return Failure{Detail: limit.ErrNoDescriptor.Error()}
	}
	if asked, ok := errors.AsType[*AskError](err); ok {
		f := Failure{Detail: asked.Error()}
		if said := asked.serverError(); said != nil {
			f.RCode = wire.RCodeText(said.Code)
			if said.Extended.Given && isForwardable(said.Extended.Code) {
				f.Extended, f.HasExtended = said.Extended.Code, true
			}
		}
		return f
	}
	if errors.Is(err, errNoHost) {
		return Failure{Detail: errNoHost.Error(), RCode: wire.RCodeText(wire.NXDomain)}
	}
	for _, known := range []error{errNames, errQuestions, errHop, errSpecial, errBusy, errStreamFull, errClosed, wire.ErrChain, wire.ErrMalformed, wire.ErrType} {
		if errors.Is(err, known) {
			return Failure{Detail: known.Error()}
		}
	}
	return Failure{}
}

// isForwardable reports whether a server's extended error is sent to callers (RFC 8914
// section 4): if it is about the name, or about the servers of its zone. All others are
// about the server itself and its clients, of which the gateway is one.
func isForwardable(code uint16) bool {
	switch code {
	case 1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 25, 27: // DNSSEC
		return true
	case 16, 17: // censored or filtered by the server; 15 is what the gateway's own policy blocks
		return true
	case 22, 23, 24: // the zone's servers cannot be reached, or their answers are of no use
		return true
	}
	return false
}
