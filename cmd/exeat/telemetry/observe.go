package telemetry

import (
	"context"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/exeat-dev/exeat/proxy/audit"
)

// Observed has the functions that return the values which are read only for a scrape or
// a push. They are called from any goroutine, until Shutdown returns; a metric without
// its function is not shown.
type Observed struct {
	// Tunnels returns the number of open tunnels.
	Tunnels func() int
	// Unanswered counts what got no answer over DNS; nil without a DNS listener.
	Unanswered func() Unanswered
	// Resolver counts the errors of name servers.
	Resolver func() []ServerErrors
	// Policy returns the policy in force; ok is false if there is none.
	Policy func() (p Policy, ok bool)
	// Held returns how many identities keep something open that the policy in force
	// forbids.
	Held func() int
	// Refused reports whether the last reading of policy and quarantine list had an
	// error.
	Refused func() bool
	// Expiry returns when the gateway's SVID expires; nil without an identity.
	Expiry func() time.Time
	// IdentityReloads counts the identities, bundles and web certificates that were
	// loaded and refused; nil without any.
	IdentityReloads func() (loaded, refused uint64)
	// IdentityRefused returns how many of these were refused when they were last read or
	// sent: the identity with its bundles, and each web certificate. It is nil without
	// any.
	IdentityRefused func() int
	// Records returns the counts of every sink of records.
	Records func() []audit.SinkStats
	// Descriptors returns the file descriptors for callers; nil if they are not
	// counted.
	Descriptors func() []Descriptors
}

// Descriptors counts file descriptors that callers can make the process use.
type Descriptors struct {
	Purpose     string // what the descriptors are used for
	Used, Limit int
	Missing     uint64 // how often none was free
}

// ServerErrors counts the errors of a name server with one cause.
type ServerErrors struct {
	Server, Cause string
	Count         uint64
}

// Unanswered counts what got no answer over DNS.
type Unanswered struct {
	NoQuery   uint64 // packets that are not queries
	OverLimit uint64 // datagrams, and connections over HTTP, beyond a limit
}

// Policy is a policy in force.
type Policy struct {
	Version    string
	Quarantine string // version of the quarantine list; "" if nobody is in quarantine
	Generation uint64
	Since      time.Time // when a policy of this version came into force
}

// Observe registers the functions, and the counts of spans. Call it once, when all
// functions can be called.
func (t *Telemetry) Observe(o Observed) error {
	b := newBuilder(t.metrics.meter)
	b.total("egress.spans", func(add func(uint64, ...attribute.KeyValue)) {
		s := t.spanStats()
		add(s.Exported, attribute.String("result", "exported"))
		add(s.Dropped, attribute.String("result", "dropped"))
		add(s.Failed, attribute.String("result", "failed"))
	})
	if o.Records != nil {
		b.total("egress.records", func(add func(uint64, ...attribute.KeyValue)) { addRecords(o.Records(), add) })
		b.gauge("egress.records.waiting", func(set func(float64, ...attribute.KeyValue)) {
			for _, s := range o.Records() {
				set(float64(s.Waiting), attribute.String("sink", s.Name))
			}
		})
	}
	if o.Unanswered != nil {
		b.total("egress.dns.unanswered", func(add func(uint64, ...attribute.KeyValue)) {
			u := o.Unanswered()
			add(u.NoQuery, attribute.String("cause", "no-query"))
			add(u.OverLimit, attribute.String("cause", "over-limit"))
		})
	}
	if o.Resolver != nil {
		b.total("egress.resolver.errors", func(add func(uint64, ...attribute.KeyValue)) {
			for _, e := range o.Resolver() {
				add(e.Count, attribute.String("server", e.Server), attribute.String("cause", e.Cause))
			}
		})
	}
	if o.Tunnels != nil {
		b.gauge("egress.tunnels.active", func(set func(float64, ...attribute.KeyValue)) { set(float64(o.Tunnels())) })
	}
	if o.Descriptors != nil {
		b.descriptors(o.Descriptors)
	}
	if o.Expiry != nil {
		b.gauge("egress.svid.expiry", func(set func(float64, ...attribute.KeyValue)) { set(time.Until(o.Expiry()).Seconds()) })
	}
	if o.IdentityReloads != nil {
		b.total("egress.identity.reloads", func(add func(uint64, ...attribute.KeyValue)) {
			loaded, refused := o.IdentityReloads()
			add(loaded, attribute.String("result", "loaded"))
			add(refused, attribute.String("result", "refused"))
		})
	}
	if o.IdentityRefused != nil {
		b.gauge("egress.identity.refused", func(set func(float64, ...attribute.KeyValue)) { set(float64(o.IdentityRefused())) })
	}
	if o.Refused != nil {
		b.gauge("egress.policy.refused", func(set func(float64, ...attribute.KeyValue)) { set(oneIf(o.Refused())) })
	}
	if o.Held != nil {
		b.gauge("egress.policy.held", func(set func(float64, ...attribute.KeyValue)) { set(float64(o.Held())) })
	}
	if o.Policy != nil {
		b.policy(o.Policy)
	}
	return b.err
}

// oneIf returns 1 for true, and 0 for false.
func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

func addRecords(sinks []audit.SinkStats, add func(uint64, ...attribute.KeyValue)) {
	for _, s := range sinks {
		sink := attribute.String("sink", s.Name)
		add(s.Written, sink, attribute.String("result", "written"))
		add(s.Summarised, sink, attribute.String("result", "summarised"))
		add(s.Dropped, sink, attribute.String("result", "dropped"))
		add(s.Failed, sink, attribute.String("result", "failed"))
	}
}

func (b *builder) policy(read func() (Policy, bool)) {
	b.gauge("egress.policy.info", func(set func(float64, ...attribute.KeyValue)) {
		if p, ok := read(); ok {
			set(1, attribute.String("version", p.Version), attribute.String("quarantine", p.Quarantine),
				attribute.String("generation", strconv.FormatUint(p.Generation, 10)))
		}
	})
	b.gauge("egress.policy.age", func(set func(float64, ...attribute.KeyValue)) {
		if p, ok := read(); ok {
			set(time.Since(p.Since).Seconds())
		}
	})
}

func (b *builder) descriptors(read func() []Descriptors) {
	b.gauge("egress.descriptors.used", func(set func(float64, ...attribute.KeyValue)) {
		for _, d := range read() {
			set(float64(d.Used), attribute.String("purpose", d.Purpose))
		}
	})
	b.gauge("egress.descriptors.limit", func(set func(float64, ...attribute.KeyValue)) {
		for _, d := range read() {
			set(float64(d.Limit), attribute.String("purpose", d.Purpose))
		}
	})
	b.total("egress.descriptors.missing", func(add func(uint64, ...attribute.KeyValue)) {
		for _, d := range read() {
			add(d.Missing, attribute.String("purpose", d.Purpose))
		}
	})
}

// total makes a counter whose values are read by a function.
func (b *builder) total(name string, read func(add func(uint64, ...attribute.KeyValue))) {
	m := b.metric(name)
	_, err := b.meter.Int64ObservableCounter(name, metric.WithUnit(m.Unit), metric.WithDescription(m.Description),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			read(func(n uint64, labels ...attribute.KeyValue) {
				o.Observe(int64(n), metric.WithAttributes(labels...)) //nolint:gosec // G115: a count
			})
			return nil
		}))
	b.failed(name, err)
}

// gauge makes a gauge whose values are read by a function.
func (b *builder) gauge(name string, read func(set func(float64, ...attribute.KeyValue))) {
	m := b.metric(name)
	_, err := b.meter.Float64ObservableGauge(name, metric.WithUnit(m.Unit), metric.WithDescription(m.Description),
		metric.WithFloat64Callback(func(_ context.Context, o metric.Float64Observer) error {
			read(func(v float64, labels ...attribute.KeyValue) { o.Observe(v, metric.WithAttributes(labels...)) })
			return nil
		}))
	b.failed(name, err)
}
