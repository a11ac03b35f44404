package tunnel

import (
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// word returns a gate that passes first bytes which begin with a word, and asks for more
// bytes while they may become it.
func word(want string) *Gate {
	return &Gate{
		Wait: patience, Farewell: []byte("no"),
		Inspect: func(p []byte, _ bool) Ruling {
			switch {
			case strings.HasPrefix(string(p), want):
				return Pass
			case strings.HasPrefix(want, string(p)):
				return More
			}
			return Refuse
		},
	}
}

// guarded starts a tunnel with a gate.
func guarded(t *testing.T, kind string, gate *Gate, early string) *rig {
	t.Helper()
	r := newRig(t, kind, Config{})
	r.Guard(gate)
	r.start(t, early)
	return r
}

// TestGateInspectsTheFirstBytes checks that a gate passes or refuses the first bytes of
// the client, however they arrive, and does not hold back the upstream's bytes.
func TestGateInspectsTheFirstBytes(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			for _, row := range []struct {
				name, early string
				sent        []string
				want        string // what arrives at the origin; "" if the gate refuses
			}{
				{"the first bytes pass", "", []string{"hello", " world"}, "hello world"},
				{"early bytes pass", "hello", []string{" world"}, "hello world"},
				{"early bytes and more", "he", []string{"llo"}, "hello"},
				{"byte by byte", "", []string{"h", "e", "l", "l", "o", "!"}, "hello!"},
				{"the first bytes are refused", "", []string{"help"}, ""},
				{"later bytes are refused", "", []string{"h", "e", "ll", "p"}, ""},
				{"early bytes are refused", "no", nil, ""},
			} {
				t.Run(row.name, func(t *testing.T) {
					r := guarded(t, kind, word("hello"), row.early)
					if row.early != "no" {
						send(t, r.origin, "banner")
						expect(t, r.client, "banner") // the gate does not hold it back
					}
					for _, s := range row.sent {
						send(t, r.client, s)
					}
					if row.want == "" {
						expectEnd(t, r.client, "no")
						r.client.Close()
						expectEnd(t, r.origin, "")
						if got := r.wait(t); got.Reason != Denied || got.Up != 0 {
							t.Errorf("got %+v, want denied, nothing up", got)
						}
						return
					}
					expect(t, r.origin, row.want)
					finish(t, r.client)
					expectEnd(t, r.origin, "")
					finish(t, r.origin)
					if got := r.wait(t); got.Reason != Client || got.Up != int64(len(row.want)) {
						t.Errorf("got %+v, want all up", got)
					}
				})
			}
		})
	}
}

// TestARefusedClientReadsTheFarewell checks that a refused client reads the farewell
// although it continues to send.
func TestARefusedClientReadsTheFarewell(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			r := guarded(t, kind, word("hello"), "")
			send(t, r.client, strings.Repeat("x", 50<<10))
			expectEnd(t, r.client, "no")
			r.client.Close()
			if got := r.wait(t); got.Reason != Denied || got.Up != 0 {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// TestRefusalClosesUpstreamAtOnce checks that the connection to the origin is closed at
// once, although that of the client may stay open for seconds, until the client has read
// the farewell.
func TestRefusalClosesUpstreamAtOnce(t *testing.T) {
	for _, row := range []struct {
		name string
		down string // what the origin sends before the refusal
	}{
		{"a silent origin", ""},
		{"an origin that has sent bytes", "banner"},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, near := net.Pipe()
				origin, far := net.Pipe()
				tun := New(half{near}, half{far}, Config{})
				tun.Guard(word("hello"))
				result := make(chan Result, 1)
				go func() { result <- tun.Run(nil) }()
				go func() { _, _ = io.WriteString(origin, row.down) }()
				expect(t, client, row.down)
				start := time.Now()
				send(t, client, "help")
				expect(t, client, "no")
				expectEnd(t, origin, "")
				if took := time.Since(start); took != 0 {
					t.Errorf("the origin's connection stayed open for %s", took)
				}
				got := <-result // after the client has been silent for a while
				if took := time.Since(start); took != lingerIdle {
					t.Errorf("the tunnel ended after %s, want %s", took, lingerIdle)
				}
				if got.Reason != Denied || got.Up != 0 || got.Down != int64(len(row.down)) {
					t.Errorf("got %+v, want denied, nothing up, %d down", got, len(row.down))
				}
				client.Close()
				origin.Close()
			})
		})
	}
}

// TestAClientThatEndsBeforeTheGate checks that a gate refuses a client which ends in the
// middle of its first bytes, and does not refuse one that ends without a byte.
func TestAClientThatEndsBeforeTheGate(t *testing.T) {
	for _, row := range []struct {
		name, sent string
		want       Reason
	}{
		{"an end without a byte is not refused", "", Client},
		{"an end in the middle is refused", "hel", Denied},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := guarded(t, "tls", word("hello"), "")
			send(t, r.client, row.sent)
			finish(t, r.client)
			if row.want == Denied {
				expectEnd(t, r.client, "no")
				r.client.Close() // the tunnel waits for it
			}
			expectEnd(t, r.origin, "")
			r.origin.Close()
			if got := r.wait(t); got.Reason != row.want || got.Up != 0 {
				t.Errorf("got %+v, want %s", got, row.want)
			}
		})
	}
}

// TestGateRefusesAfterItsWait checks after which time a gate refuses a client that has
// not sent enough.
func TestGateRefusesAfterItsWait(t *testing.T) {
	const wait = 10 * time.Second
	for _, row := range []struct {
		name  string
		speak bool
		sent  string
		want  time.Duration // time until the refusal; 0 if there is none before the tunnel is idle
	}{
		{"silence where the client need not speak", false, "", 0},
		{"silence where the client must speak", true, "", wait},
		{"half a word", false, "hel", wait},
		{"half a word where the client must speak", true, "hel", wait},
		{"a whole word where the client must speak", true, "hello", 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, near := net.Pipe()
				origin, far := net.Pipe()
				gate := word("hello")
				gate.Wait, gate.Speak = wait, row.speak
				tun := New(near, far, Config{Idle: time.Minute})
				tun.Guard(gate)
				start := time.Now()
				result := make(chan Result, 1)
				go func() { result <- tun.Run(nil) }()
				go func() { _, _ = io.Copy(io.Discard, origin) }()
				if row.sent != "" {
					send(t, client, row.sent)
				}
				got, _ := io.ReadAll(client)
				res := <-result
				switch took := time.Since(start); {
				case row.want == 0 && (res.Reason != Idle || took != time.Minute):
					t.Errorf("ended as %s after %s", res.Reason, took)
				case row.want != 0 && (res.Reason != Denied || string(got) != "no" || took != row.want):
					t.Errorf("ended as %s after %s with %q, want denied after %s", res.Reason, took, got, row.want)
				}
				client.Close()
				origin.Close()
			})
		})
	}
}

// TestCloseAtTheGate checks that Close ends a tunnel whose gate waits for the client.
func TestCloseAtTheGate(t *testing.T) {
	r := guarded(t, "tls", word("hello"), "")
	send(t, r.client, "hel")
	r.Close(Revoked)
	if got := r.wait(t); got.Reason != Revoked || got.Up != 0 {
		t.Errorf("got %+v", got)
	}
	expectEnd(t, r.origin, "")
}

// TestARefusedClientThatDoesNotRead checks that a refused client which does not read the
// farewell does not keep its tunnel.
func TestARefusedClientThatDoesNotRead(t *testing.T) {
	gate := word("hello")
	gate.Farewell = make([]byte, 64<<20) // more than any socket buffer
	r := guarded(t, "tcp", gate, "no")
	if got := r.wait(t); got.Reason != Denied {
		t.Errorf("got %+v", got)
	}
}

// TestTunnelEndsWhenItsUploadIsSpent checks that a tunnel ends at its limit of uploaded
// bytes when Spend returns false, and that downloaded bytes are not spent.
func TestTunnelEndsWhenItsUploadIsSpent(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			var left atomic.Int64
			left.Store(10)
			r := startRig(t, kind, Config{Spend: func(n int) bool { return left.Add(-int64(n)) >= 0 }}, "early")
			expect(t, r.origin, "early")
			send(t, r.origin, strings.Repeat("d", 100)) // downloaded bytes are not spent
			expect(t, r.client, strings.Repeat("d", 100))
			send(t, r.client, "12345")
			expect(t, r.origin, "12345")
			send(t, r.client, "6")
			expectEnd(t, r.origin, "")
			if _, err := io.ReadAll(r.client); err != nil && kind == "tls" {
				t.Errorf("the client's connection ended with %v, want a close_notify", err)
			}
			if got := r.wait(t); got.Reason != Limit || got.Up != 10 {
				t.Errorf("got %+v, want limit after 10 bytes", got)
			}
		})
	}
}

// TestGateIsReleased checks that a tunnel does not keep its gate after the first bytes
// have passed.
func TestGateIsReleased(t *testing.T) {
	r := guarded(t, "tls", word("hello"), "")
	send(t, r.client, "hello")
	expect(t, r.origin, "hello")
	r.Close(Drain)
	r.wait(t)
	if r.gate != nil {
		t.Error("the tunnel still has its gate")
	}
}
