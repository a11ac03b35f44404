package native

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// maxLine bounds the bytes of a line. The gateway writes none that comes near it,
// because the texts of a record are bounded.
const maxLine = 64 << 10

// Parse reads a line that Render has written, without its newline. For anything else it
// returns an error and the zero record: for a key that is unknown, repeated or out of
// order, a value of another type or in another form, a word that is not defined, or a
// line of more than 64 KiB. The record shares no memory with the line. Parse is safe
// for concurrent use.
func Parse(text []byte) (audit.Record, error) {
	if len(text) > maxLine {
		return audit.Record{}, fmt.Errorf("reading a record: the line has %d bytes, more than %d", len(text), maxLine)
	}
	r, err := decode(text)
	if err != nil {
		return audit.Record{}, fmt.Errorf("reading a record: %w", err)
	}
	// Rendering again finds what encoding/json accepts: it folds the case of keys,
	// takes the last of two equal keys, and does not read what follows the object.
	again, err := Render(make([]byte, 0, len(text)), &r)
	if err != nil {
		return audit.Record{}, err
	}
	if !bytes.Equal(again, text) {
		return audit.Record{}, fmt.Errorf("reading a record: a record is written in another way from byte %d on", commonPrefixLen(again, text))
	}
	return r, nil
}

// commonPrefixLen returns the length of the longest common prefix of two texts.
func commonPrefixLen(a, b []byte) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// fields holds the fields of a line, in their order.
type fields struct {
	Schema       int                     `json:"schema"`
	Time         time.Time               `json:"time"`
	Event        audit.Event             `json:"event"`
	ID           string                  `json:"id"`
	Instance     string                  `json:"instance"`
	Listener     string                  `json:"listener"`
	Protocol     audit.Protocol          `json:"protocol"`
	Wire         audit.Wire              `json:"wire"`
	Identity     identity                `json:"identity"`
	Proof        word[allowlist.Proof]   `json:"identity_source"`
	Client       client                  `json:"client"`
	Unproven     bool                    `json:"unproven"` // follows from the wire; comparing the lines checks it
	Attributed   string                  `json:"attributed"`
	Host         host                    `json:"host"`
	Port         uint16                  `json:"port"`
	Method       string                  `json:"method"`
	Path         string                  `json:"path"`
	Address      netip.AddrPort          `json:"address"`
	Verdict      word[allowlist.Verdict] `json:"verdict"`
	Reason       word[allowlist.Reason]  `json:"reason"`
	WouldReason  word[allowlist.Reason]  `json:"would_reason"`
	Status       int                     `json:"status"`
	Rule         string                  `json:"rule"`
	RuleAt       string                  `json:"rule_at"`
	Owner        string                  `json:"owner"`
	Ticket       string                  `json:"ticket"`
	Policy       string                  `json:"policy"`
	Quarantine   string                  `json:"quarantine"`
	Generation   uint64                  `json:"generation"`
	Mode         word[allowlist.Mode]    `json:"mode"`
	Stage        word[audit.Stage]       `json:"stage"`
	SNI          string                  `json:"sni"`
	TLS          word[audit.TLS]         `json:"tls"`
	ECH          bool                    `json:"ech"`
	Class        word[allowlist.Class]   `json:"address_class"`
	Dropped      int                     `json:"addresses_dropped"`
	Refused      []netip.Addr            `json:"addresses_refused"`
	QueryType    queryType               `json:"qtype"`
	Code         string                  `json:"rcode"`
	Answers      int                     `json:"answers"`
	Answered     []netip.Addr            `json:"answered"`
	Filtered     int                     `json:"filtered"`
	AnswerOrigin string                  `json:"source"`
	ResolveMS    thousandths             `json:"resolve_ms"`
	DialMS       thousandths             `json:"dial_ms"`
	DecideUS     thousandths             `json:"decide_us"`
	Up           int64                   `json:"up"`
	Down         int64                   `json:"down"`
	DurationMS   thousandths             `json:"duration_ms"`
	CloseReason  word[tunnel.Reason]     `json:"close_reason"`
	Detail       string                  `json:"detail"`
	Count        uint64                  `json:"count"`
	First        *time.Time              `json:"first"` // nil if the record stands only for itself
	Last         time.Time               `json:"last"`
	Counts       []count                 `json:"counts"`
	TraceID      string                  `json:"trace_id"`
	SpanID       string                  `json:"span_id"`
	CallerTrace  string                  `json:"caller_trace_id"`
}

type count struct {
	Verdict word[allowlist.Verdict] `json:"verdict"`
	Reason  word[allowlist.Reason]  `json:"reason"`
	Count   uint64                  `json:"count"`
}

// decode reads the object at the beginning of the text.
func decode(text []byte) (audit.Record, error) {
	var f fields
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return audit.Record{}, err
	}
	if f.Schema != audit.Schema {
		return audit.Record{}, fmt.Errorf("schema %d, want %d", f.Schema, audit.Schema)
	}
	r := f.record()
	r.Merged = f.merged()
	err := f.setTraces(&r)
	return r, err
}

// record returns the record without Merged and the ids of the traces.
func (f *fields) record() audit.Record {
	return audit.Record{
		Time: f.Time, Event: f.Event, ID: f.ID, Instance: f.Instance,
		Listener: f.Listener, Protocol: f.Protocol, Wire: f.Wire,
		Identity: f.Identity.id, Proof: f.Proof.value, Client: netip.AddrPort(f.Client), Attributed: f.Attributed,
		Dest:   allowlist.Destination{Host: f.Host.host, Port: f.Port},
		Method: f.Method, Path: f.Path, Address: f.Address,
		Verdict: f.Verdict.value, Reason: f.Reason.value, WouldReason: f.WouldReason.value, Status: f.Status,
		Rule: f.Rule, RuleAt: f.RuleAt, Owner: f.Owner, Ticket: f.Ticket, Policy: f.Policy, Quarantine: f.Quarantine, Generation: f.Generation, Mode: f.Mode.value,
		Stage: f.Stage.value, Hello: audit.Hello{SNI: f.SNI, TLS: f.TLS.value, ECH: f.ECH},
		Class: f.Class.value, Dropped: f.Dropped, Refused: f.Refused,
		Resolve: f.ResolveMS.milliseconds(), Dial: f.DialMS.milliseconds(), Decide: f.DecideUS.microseconds(),
		DNS: audit.DNS{
			Type: allowlist.QueryType(f.QueryType), Code: f.Code, Answers: f.Answers, Answered: f.Answered, Filtered: f.Filtered, Origin: f.AnswerOrigin,
		},
		Up: f.Up, Down: f.Down, Duration: f.DurationMS.milliseconds(), CloseReason: f.CloseReason.value, Detail: f.Detail,
	}
}

func (f *fields) merged() *audit.Merged {
	if f.First == nil {
		return nil
	}
	m := &audit.Merged{Count: f.Count, First: *f.First, Last: f.Last, Other: f.Identity.other}
	for _, c := range f.Counts {
		m.Counts = append(m.Counts, audit.Count{Verdict: c.Verdict.value, Reason: c.Reason.value, Count: c.Count})
	}
	return m
}

// setTraces sets the ids of the traces.
func (f *fields) setTraces(r *audit.Record) error {
	var span trace.SpanContextConfig
	err := errors.Join(
		decodeHex(span.TraceID[:], f.TraceID), decodeHex(span.SpanID[:], f.SpanID), decodeHex(r.CallerTrace[:], f.CallerTrace),
	)
	r.Trace = trace.NewSpanContext(span)
	return err
}

// decodeHex reads an id in hexadecimal, which may be empty.
func decodeHex(id []byte, text string) error {
	if text == "" {
		return nil
	}
	if len(text) != 2*len(id) {
		return fmt.Errorf("an id of %d digits, want %d", len(text), 2*len(id))
	}
	_, err := hex.Decode(id, []byte(text))
	return err
}

// word is a value of a closed set, written as the value's word.
type word[T interface {
	~uint8
	fmt.Stringer
}] struct{ value T }

// UnmarshalText sets the highest value that has the word, because the word of the
// default mode is also that of the mode that is not set.
func (w *word[T]) UnmarshalText(text []byte) error {
	undefined := ^T(0) // not in any of the sets
	if s := string(text); s != undefined.String() {
		for v := undefined; ; v-- {
			if v.String() == s {
				w.value = v
				return nil
			}
			if v == 0 {
				break
			}
		}
	}
	return fmt.Errorf("%q is no %T", text, w.value)
}

// identity is a SPIFFE ID, or audit.Other.
type identity struct {
	id    spiffeid.ID
	other bool
}

func (i *identity) UnmarshalText(text []byte) error {
	if i.other = string(text) == audit.Other; i.other {
		return nil
	}
	return i.id.UnmarshalText(text)
}

// client is an address with a port, or an address alone.
type client netip.AddrPort

func (c *client) UnmarshalText(text []byte) error {
	both, err := netip.ParseAddrPort(string(text))
	if err == nil {
		*c = client(both)
		return nil
	}
	addr, err := netip.ParseAddr(string(text))
	*c = client(netip.AddrPortFrom(addr, 0))
	return err
}

type host struct{ host allowlist.Host }

func (h *host) UnmarshalText(text []byte) (err error) {
	h.host, err = allowlist.ParseHost(string(text))
	return err
}

type queryType allowlist.QueryType

func (q *queryType) UnmarshalText(text []byte) error {
	if t, ok := allowlist.ParseQueryType(string(text)); ok {
		*q = queryType(t)
		return nil
	}
	number, _ := strings.CutPrefix(string(text), "TYPE")
	n, err := strconv.ParseUint(number, 10, 16)
	*q = queryType(n)
	return err
}

// thousandths is a number with at most three digits after the decimal point, in
// thousandths.
type thousandths int64

func (n *thousandths) UnmarshalJSON(text []byte) error {
	whole, part, _ := strings.Cut(string(text), ".")
	v, err := strconv.ParseInt(whole+(part + "000")[:3], 10, 64)
	*n = thousandths(v)
	return err
}

func (n thousandths) milliseconds() time.Duration { return time.Duration(n) * time.Microsecond }
func (n thousandths) microseconds() time.Duration { return time.Duration(n) }
