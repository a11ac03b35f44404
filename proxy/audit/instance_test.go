package audit

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// TestEveryRecordNamesItsInstance checks every event, also the records that the recorder
// makes by itself, in both modes.
func TestEveryRecordNamesItsInstance(t *testing.T) {
	ways := map[string]func(t *testing.T, cfg Config) (events []Event){
		"queued": func(t *testing.T, cfg Config) []Event {
			t.Helper()
			r := newRecorder(t, cfg)
			o := decide(t, r, "a", allowlist.Allow, allowlist.NoReason)
			o.End()
			tunnel := o.Tunnel()
			tunnel.Progress(1, 1)
			tunnel.Refuse(t.Context(), allowlist.NotTLS)
			tunnel.Close(t.Context(), 1, 1, 1, allowlist.NoReason)
			r.Event(Record{Event: EventPolicyReload})
			closeNow(t, r)
			return []Event{EventDecision, EventDecision, EventPolicyReload, EventTunnelClose, EventTunnelProgress}
		},
		"required": func(t *testing.T, cfg Config) []Event {
			t.Helper()
			cfg.Required = true
			r := newRecorder(t, cfg)
			o := decide(t, r, "a", allowlist.Allow, allowlist.NoReason)
			if err := o.Commit(t.Context()); err != nil {
				t.Error(err)
			}
			o.End()
			closeNow(t, r)
			return []Event{EventDecision}
		},
		"collapsed": func(t *testing.T, cfg Config) []Event {
			t.Helper()
			cfg.Collapse = time.Hour
			r := newRecorder(t, cfg)
			denied(t, r, "a.example:443").End()
			denied(t, r, "a.example:443").End()
			closeNow(t, r)
			return []Event{EventDecision, EventCollapsed}
		},
		"summary": func(t *testing.T, cfg Config) []Event {
			t.Helper()
			out, sink := newSlow(), cfg.Sinks[0].Sink
			cfg.Queue, cfg.Sinks = 1, to(both{out, sink})
			r := newRecorder(t, cfg)
			denied(t, r, "a.example:443").End()
			<-out.entered
			denied(t, r, "b.example:443").End()
			denied(t, r, "c.example:443").End()
			close(out.let)
			closeNow(t, r)
			return []Event{EventDecision, EventDecision, EventSummary}
		},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			out := &memory{}
			var events []Event
			want := way(t, Config{Sinks: to(out), Instance: "gateway-7"})
			for _, r := range out.taken() {
				if events = append(events, r.Event); r.Instance != "gateway-7" {
					t.Errorf("%s of instance %q", r.Event, r.Instance)
				}
			}
			if slices.Sort(events); !slices.Equal(events, want) {
				t.Errorf("events %v, want %v", events, want)
			}
		})
	}
}

// both is a sink that writes to two sinks.
type both [2]Sink

func (b both) Write(ctx context.Context, records []*Record) error {
	for _, s := range b {
		if err := s.Write(ctx, records); err != nil {
			return err
		}
	}
	return nil
}

func TestALongInstanceIsCut(t *testing.T) {
	out := &memory{}
	r := newRecorder(t, Config{Sinks: to(out), Instance: strings.Repeat("i", 1000)})
	r.Event(Record{Event: EventPolicyReload})
	closeNow(t, r)
	if got := len(out.taken()[0].Instance); got != 253+len("...") {
		t.Errorf("%d bytes", got)
	}
}

// TestARecordKeepsItsAddresses checks that a record keeps its addresses although their
// maker reuses the memory before a sink has written them.
func TestARecordKeepsItsAddresses(t *testing.T) {
	for _, required := range []bool{false, true} {
		out := newSlow()
		r := newRecorder(t, Config{Sinks: to(out), Required: required})
		place := []netip.Addr{netip.MustParseAddr("203.0.113.1")}
		o := decide(t, r, "a", allowlist.Allow, allowlist.NoReason)
		o.DNS.Answered = place
		if required {
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-out.entered; cancel() }()
			if err := o.Commit(ctx); err == nil {
				t.Error("it was written before it could be")
			}
		} else {
			o.End()
			<-out.entered
		}
		place[0] = netip.MustParseAddr("203.0.113.2")
		close(out.let)
		closeNow(t, r)
		if got := out.taken()[0].DNS.Answered; len(got) != 1 || got[0] != netip.MustParseAddr("203.0.113.1") {
			t.Errorf("required %v: %v", required, got)
		}
	}
}
