package resolve

import (
	"cmp"
	"errors"
	"strings"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/resolve/wire"
)

// maxTries bounds the servers of which an AskError tells.
const maxTries = 3

// AskError says why a question has no answer: what each server that was asked has
// done. Its text is for records and the log: it names servers.
type AskError struct {
	alias allowlist.Host // the name that was asked for, if an alias led to it
	tries []try          // the last one of each server, the last server at the end
}

// try is what came of asking one server.
type try struct {
	server string
	text   string
	err    error
}

// add notes what a server has done, in place of what it did before.
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

// Error says of each server what it has done.
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

// Unwrap returns what the last server did: that decides which reason the error has.
func (e *AskError) Unwrap() error {
	if len(e.tries) == 0 {
		return nil
	}
	return e.tries[len(e.tries)-1].err
}

// said returns the last answer of a server that it has none; one with an extended
// error comes before others. It is nil if no server said so.
func (e *AskError) said() *wire.ServerError {
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

// of returns the error of a question that was asked because an alias led to a name.
func (e *AskError) of(alias allowlist.Host) *AskError {
	return &AskError{alias: alias, tries: e.tries}
}

// Failure is what may be said, and to whom, of a look-up that failed.
type Failure struct {
	// Detail is for records: what went wrong, and which servers were asked. It is
	// printable text of a bounded length, and "" if there is nothing to say.
	Detail string
	// RCode is the word for the response code of a server, such as SERVFAIL; "" if no
	// server gave one.
	RCode string
	// Extended is the code of the extended error that a server gave, if HasExtended: of
	// those that callers may be told.
	Extended    uint16
	HasExtended bool
}

// FailureOf returns what may be said of an error of Lookup or Resolve. It is zero for
// all other errors.
func FailureOf(err error) Failure {
	if limit.NoDescriptor(err) {
		return Failure{Detail: limit.ErrNoDescriptor.Error()}
	}
	if asked, ok := errors.AsType[*AskError](err); ok {
		f := Failure{Detail: asked.Error()}
		if said := asked.said(); said != nil {
			f.RCode = wire.RCodeText(said.Code)
			if said.Extended.Given && isTold(said.Extended.Code) {
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

// isTold reports whether callers are told an extended error of a server (RFC 8914
// section 4): one that says something of the name, or of the way to the servers of its
// zone. All others are about the server itself and its clients, of which we are one.
func isTold(code uint16) bool {
	switch code {
	case 1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 25, 27: // DNSSEC
		return true
	case 16, 17: // censored or filtered before us; 15 is what our own policy blocks
		return true
	case 22, 23, 24: // the zone's servers cannot be reached, or say nothing of use
		return true
	}
	return false
}
