package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/admin"
	"github.com/exeat-dev/exeat/proxy/live"
)

// probes answers whether new connections should be sent to this gateway.
type probes struct {
	cfg       *Config
	state     func() *live.State
	heldNotes func() []string // returns the lines about what is held; see inForce.notes
	shed      *shedReporter
	admin     *admin.Server // nil if no address is configured
	stopping  atomic.Bool
}

// open opens the admin listener, if the configuration names one.
func (p *probes) open(ctx context.Context) error {
	if p.cfg.Admin.Address == "" {
		return nil
	}
	cfg := admin.Config{
		Address: p.cfg.Admin.Address, NotReady: p.notReady, Notes: p.notes, Metrics: p.cfg.Admin.Metrics,
		Connections: p.cfg.Admin.Connections, Shed: p.shed.counter(AdminName),
	}
	if p.admin = p.cfg.Admin.Opened; p.admin != nil {
		p.admin.Replace(cfg)
		return nil
	}
	var err error
	p.admin, err = admin.Listen(ctx, cfg)
	return err
}

// serve answers until close is called.
func (p *probes) serve(ctx context.Context) {
	if p.admin == nil || p.admin == p.cfg.Admin.Opened {
		return
	}
	if err := p.admin.Serve(); err != nil {
		p.cfg.Log.LogAttrs(ctx, slog.LevelError, "the admin listener stopped", slog.Any("error", err))
	}
}

func (p *probes) close() {
	if p.admin != nil {
		_ = p.admin.Close()
	}
}

// addresses returns the address of the admin listener.
func (p *probes) addresses() []netip.AddrPort {
	if p.admin == nil {
		return nil
	}
	if tcp, ok := p.admin.Addr().(*net.TCPAddr); ok {
		return []netip.AddrPort{tcp.AddrPort()}
	}
	return nil
}

// notReady returns the reasons why no new connection should be sent to this gateway.
// Another replica would do better in each case, and each case ends without new
// connections.
func (p *probes) notReady() []string {
	var causes []string
	if p.stopping.Load() {
		causes = append(causes, "draining: the gateway is shutting down")
	}
	if s := p.state(); s == nil || s.Policy == nil {
		causes = append(causes, "policy: none is loaded")
	}
	if p.cfg.Identity != nil {
		if end := p.cfg.Identity.Snapshot().NotAfter(); time.Now().After(end) {
			causes = append(causes, "identity: expired "+end.UTC().Format(time.RFC3339)+", and no newer one has come")
		}
	}
	return append(causes, p.failing(true)...)
}

// failing returns a line for each sink that loses records, if its argument says whether
// records are required.
func (p *probes) failing(required bool) []string {
	r := p.cfg.Recorder
	if r == nil || r.Required() != required {
		return nil
	}
	var lines []string
	for _, f := range r.Failing() {
		text := fmt.Sprintf("records: sink %s loses records since %s: %v", f.Sink, f.Since.UTC().Format(time.RFC3339), f.Err)
		lines = append(lines, allowlist.Visible(text)) // the error may quote a collector
	}
	return lines
}

// notes returns problems that are no reason to send connections elsewhere.
func (p *probes) notes() []string {
	notes := append(p.heldNotes(), p.failing(false)...)
	if p.cfg.Admin.Notes != nil {
		notes = append(notes, p.cfg.Admin.Notes()...)
	}
	if short := p.cfg.Descriptors.shortageNote(time.Now()); short != "" {
		notes = append(notes, short)
	}
	return notes
}
