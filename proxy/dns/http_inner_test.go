package dns

import (
	"context"
	"net/http"
	"testing"

	"github.com/exeat-dev/exeat/proxy/listen"
)

// panicking is a body whose reader panics.
type panicking struct{}

func (panicking) Read([]byte) (int, error) { panic("the body of this test panics") }

// TestPanicOfAReaderLeavesNoEntry checks that a query whose body cannot be read because of a
// panic does not stay in the registry.
func TestPanicOfAReaderLeavesNoEntry(t *testing.T) {
	s := newServer(t, nil)
	defer func() {
		if recover() == nil {
			t.Error("the panic is hidden")
		}
		if n := s.cfg.Registry.Len(); n != 0 {
			t.Errorf("%d entries are left", n)
		}
	}()
	s.AnswerHTTP(context.Background(), listen.Verified{Conn: &listen.Conn{}, Caller: sidecar()}, &HTTPRequest{Method: http.MethodPost, ContentType: dnsMessage, Body: panicking{}})
}

// TestQueryIsRegisteredUntilItIsDone checks that a query is in the registry until its
// answer was sent, and that a request of a caller whom the policy does not know never is.
func TestQueryIsRegisteredUntilItIsDone(t *testing.T) {
	s := newServer(t, nil)
	unknown := sidecar()
	unknown.ID = unknown.ID.TrustDomain().ID()
	for name, row := range map[string]struct {
		caller listen.Caller
		want   int
	}{"known": {sidecar(), 1}, "unknown": {unknown, 0}} {
		a := s.AnswerHTTP(context.Background(), listen.Verified{Conn: &listen.Conn{}, Caller: row.caller}, &HTTPRequest{Method: http.MethodDelete})
		if n := s.cfg.Registry.Len(); n != row.want || a.Status != http.StatusMethodNotAllowed {
			t.Errorf("%s: %d entries before the answer is sent, want %d; status %d", name, n, row.want, a.Status)
		}
		a.Done(nil)
		if n := s.cfg.Registry.Len(); n != 0 {
			t.Errorf("%s: %d entries are left", name, n)
		}
	}
}
