package telemetry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// Instruments counts and measures what happens. All methods are safe for concurrent use
// and never block; none allocates after it has seen the label values that it gets.
type Instruments struct {
	decisions  metric.Int64Counter
	queries    metric.Int64Counter
	byIdentity metric.Int64Counter // nil without a cap
	handshakes metric.Int64Counter
	reloads    metric.Int64Counter
	cut        metric.Int64Counter
	io         metric.Int64Counter

	authorize, resolve, dial, tunnel, revocation metric.Float64Histogram

	decisionSets  *family[decisionLabels]
	querySets     *family[queryLabels]
	identitySets  *family[identityLabels]
	handshakeSets *family[string]
	reloadSets    *family[string]
	cutSets       *family[cutLabels]
	up, down      []metric.AddOption

	identities, mapped *limiter // mapped is for identities that come from source-map
	progress           progress
}

// decisionLabels are the labels of egress.decisions, all from closed sets.
type decisionLabels struct {
	verdict  allowlist.Verdict
	reason   allowlist.Reason
	protocol audit.Protocol
	mode     string
}

func (l decisionLabels) attributes() []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.String("verdict", l.verdict.String()), attribute.String("reason", l.reason.String()),
		attribute.String("protocol", string(l.protocol)), attribute.String("mode", l.mode),
	}
}

// queryLabels are the labels of egress.dns.queries.
type queryLabels struct{ qtype, rcode, source string }

func (l queryLabels) attributes() []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.String("qtype", l.qtype), attribute.String("rcode", l.rcode), attribute.String("source", l.source),
	}
}

// queryLabelsOf returns the labels of a query. It bounds the values that callers
// choose.
func queryLabelsOf(d *audit.DNS) queryLabels {
	l := queryLabels{qtype: otherLabel, rcode: d.Code, source: d.Origin}
	if d.Type.Known() {
		l.qtype = d.Type.String()
	}
	return l
}

// identityLabels are the labels of egress.decisions.by_identity.
type identityLabels struct {
	identity string
	proof    allowlist.Proof
	verdict  allowlist.Verdict
}

func (l identityLabels) attributes() []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.String("identity", l.identity), attribute.String("identity_source", l.proof.String()),
		attribute.String("verdict", l.verdict.String()),
	}
}

// cutLabels are the labels of egress.connections.cut.
type cutLabels struct{ listener, cause string }

func (l cutLabels) attributes() []attribute.KeyValue {
	return []attribute.KeyValue{attribute.String("listener", l.listener), attribute.String("cause", l.cause)}
}

// newInstruments makes the counters and histograms of Catalogue.
func newInstruments(meter metric.Meter, identityCap int) (*Instruments, error) {
	b := newBuilder(meter)
	i := &Instruments{
		decisions:  b.counter("egress.decisions"),
		queries:    b.counter("egress.dns.queries"),
		handshakes: b.counter("egress.tls.handshakes"),
		reloads:    b.counter("egress.policy.reloads"),
		cut:        b.counter("egress.connections.cut"),
		io:         b.counter("egress.io"),
		authorize:  b.histogram("egress.authorize.duration"),
		resolve:    b.histogram("egress.resolve.duration"),
		dial:       b.histogram("egress.dial.duration"),
		tunnel:     b.histogram("egress.tunnel.duration"),
		revocation: b.histogram("egress.revocation.duration"),

		decisionSets:  newFamily(decisionLabels.attributes),
		querySets:     newFamily(queryLabels.attributes),
		identitySets:  newFamily(identityLabels.attributes),
		handshakeSets: label("result"),
		reloadSets:    label("result"),
		cutSets:       newFamily(cutLabels.attributes),
	}
	direction := label("direction")
	i.up, i.down = direction.of("up"), direction.of("down")
	if identityCap > 0 {
		i.byIdentity = b.counter("egress.decisions.by_identity")
		i.identities, i.mapped = newLimiter(identityCap), newLimiter(identityCap)
	}
	i.createSeries()
	return i, b.err
}

// createSeries creates, with the value zero, the series whose first increment an alert must
// see: increase() and rate() see no increment before the second sample. Of the series of
// decisions, it creates those for which a few decisions already raise an alert.
func (i *Instruments) createSeries() {
	ctx := context.Background()
	for _, reason := range []allowlist.Reason{allowlist.QuarantinedIdentity, allowlist.NameBudget} {
		for _, protocol := range []audit.Protocol{audit.ProtocolConnect, audit.ProtocolHTTP, audit.ProtocolDNS, audit.ProtocolSOCKS5} {
			for _, mode := range []allowlist.Mode{allowlist.ModeEnforce, allowlist.ModeObserve} {
				l := decisionLabels{verdict: reason.Verdict(), reason: reason, protocol: protocol, mode: mode.String()}
				i.decisions.Add(ctx, 0, i.decisionSets.of(l)...)
			}
		}
	}
	for _, result := range reloadResults() {
		i.reloads.Add(ctx, 0, i.reloadSets.of(result)...)
	}
	for _, result := range handshakeResults() {
		i.handshakes.Add(ctx, 0, i.handshakeSets.of(result)...)
	}
}

// Measure counts a record, for audit.Config.Measure. It neither keeps nor changes the
// record.
func (i *Instruments) Measure(r *audit.Record) {
	ctx := context.Background() // metrics belong to no request, because they have no exemplars
	switch r.Event {
	case audit.EventDecision:
		i.decision(ctx, r)
	case audit.EventTunnelProgress:
		i.bytes(ctx, i.progress.report(r.ID, transferred{up: r.Up, down: r.Down}))
	case audit.EventTunnelClose:
		i.bytes(ctx, i.progress.end(r.ID, transferred{up: r.Up, down: r.Down}))
		if r.IsTunnel() {
			i.tunnel.Record(ctx, r.Duration.Seconds())
		}
	case audit.EventHandshake:
		if !isUnused(r) && r.Wire == "" { // a connection with a wire has had its handshake
			i.Handshake(r.Reason)
		}
	case audit.EventSummary, audit.EventCollapsed: // their decisions were counted one by one
	case audit.EventPolicyReload, audit.EventIdentityRotate, audit.EventQuarantine: // counted by Reload and Enforced
	}
}

func (i *Instruments) decision(ctx context.Context, r *audit.Record) {
	l := decisionLabels{verdict: r.Verdict, reason: r.Reason, protocol: r.Protocol}
	if r.Verdict == allowlist.Observe {
		l.reason = r.WouldReason
	}
	if r.Policy != "" { // as in the record: without a policy there is no mode
		l.mode = r.Mode.String()
	}
	i.decisions.Add(ctx, 1, i.decisionSets.of(l)...)
	if r.Protocol == audit.ProtocolDNS {
		i.queries.Add(ctx, 1, i.querySets.of(queryLabelsOf(&r.DNS))...)
	}
	if i.byIdentity != nil && !r.Identity.IsZero() {
		l := identityLabels{identity: i.namesOf(r.Proof).under(r.Identity.String()), proof: r.Proof, verdict: r.Verdict}
		i.byIdentity.Add(ctx, 1, i.identitySets.of(l)...)
	}
	positive(ctx, i.authorize, r.Decide)
	positive(ctx, i.resolve, r.Resolve)
	positive(ctx, i.dial, r.Dial)
}

// namesOf returns the limiter of the identities with a proof, so that forged addresses
// take no series from identities that are proven otherwise.
func (i *Instruments) namesOf(proof allowlist.Proof) *limiter {
	if proof == allowlist.ProofSourceMap {
		return i.mapped
	}
	return i.identities
}

// positive records a time unless it is zero.
func positive(ctx context.Context, h metric.Float64Histogram, d time.Duration) {
	if d > 0 {
		h.Record(ctx, d.Seconds())
	}
}

func (i *Instruments) bytes(ctx context.Context, t transferred) {
	i.io.Add(ctx, t.up, i.up...)
	i.io.Add(ctx, t.down, i.down...)
}

// isUnused reports whether the record is about a handshake with an invalid certificate
// that was not followed by a request. Unused has counted it.
func isUnused(r *audit.Record) bool {
	return r.Reason == allowlist.IdentityInvalid || r.Reason == allowlist.IdentityUntrusted || r.Reason == allowlist.IdentityExpired
}

// Handshake counts a TLS handshake by the reason why it gave no identity, NoReason if
// it did, for gateway.Metrics. Handshakes that failed inside the TLS library are
// counted by Measure from their record.
func (i *Instruments) Handshake(why allowlist.Reason) {
	i.handshake(cmp.Or(why.String(), handshakeOK))
}

// Unused counts a TLS handshake that was not followed by a request.
func (i *Instruments) Unused() { i.handshake(handshakeUnused) }

func (i *Instruments) handshake(result string) {
	i.handshakes.Add(context.Background(), 1, i.handshakeSets.of(result)...)
}

// Cut counts connections of a listener that were closed for want of a slot or a file
// descriptor. Zero creates the counter, so that it is shown before the first one.
func (i *Instruments) Cut(listener, cause string, connections int) {
	i.cut.Add(context.Background(), int64(connections), i.cutSets.of(cutLabels{listener, cause})...)
}

// Reload counts a load of the policy by its result: in-force, held or refused.
func (i *Instruments) Reload(result string) {
	i.reloads.Add(context.Background(), 1, i.reloadSets.of(result)...)
}

// Enforced measures the time from when a policy comes into force until the last tunnel
// that it forbids was told to end.
func (i *Instruments) Enforced(took time.Duration) {
	i.revocation.Record(context.Background(), took.Seconds())
}

// transferred is the number of bytes from and to a caller.
type transferred struct{ up, down int64 }

// progress holds how many bytes of the open tunnels have been counted.
type progress struct {
	mu      sync.Mutex
	counted map[string]transferred // by the id of the decision
}

// report returns how much a tunnel has transferred since its last report.
func (p *progress) report(id string, total transferred) transferred {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.counted[id]
	if p.counted == nil {
		p.counted = make(map[string]transferred)
	}
	p.counted[id] = total
	return transferred{up: total.up - before.up, down: total.down - before.down}
}

// end is the last report of a tunnel, which is then removed.
func (p *progress) end(id string, total transferred) transferred {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.counted[id]
	delete(p.counted, id)
	return transferred{up: total.up - before.up, down: total.down - before.down}
}

// A builder makes instruments as Catalogue describes them.
type builder struct {
	meter metric.Meter
	known map[string]Metric
	err   error
}

func newBuilder(meter metric.Meter) *builder {
	b := &builder{meter: meter, known: make(map[string]Metric)}
	for _, m := range Catalogue() {
		b.known[m.Name] = m
	}
	return b
}

func (b *builder) metric(name string) Metric {
	m, ok := b.known[name]
	if !ok {
		b.failed(name, errors.New("it is not in the list of metrics"))
	}
	return m
}

func (b *builder) failed(name string, err error) {
	if err != nil {
		b.err = errors.Join(b.err, fmt.Errorf("metric %s: %w", name, err))
	}
}

func (b *builder) counter(name string) metric.Int64Counter {
	m := b.metric(name)
	c, err := b.meter.Int64Counter(name, metric.WithUnit(m.Unit), metric.WithDescription(m.Description))
	b.failed(name, err)
	return c
}

func (b *builder) histogram(name string) metric.Float64Histogram {
	m := b.metric(name)
	h, err := b.meter.Float64Histogram(name, metric.WithUnit(m.Unit), metric.WithDescription(m.Description),
		metric.WithExplicitBucketBoundaries(m.buckets...))
	b.failed(name, err)
	return h
}
