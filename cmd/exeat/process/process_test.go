package process

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/resolve"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// forEverybody is a policy for every identity of the gateway's trust domain.
const forEverybody = "version: 1\neveryone: {unlisted: true, allow: [{host: api.example}]}\n"

// full returns a configuration that reads from every kind of source but the Workload
// API, and writes to a file.
func full(t *testing.T) config.Config {
	t.Helper()
	ca, dir := newTestAuthority(t), t.TempDir()
	mint(t, ca, filepath.Join(dir, "own"))
	mint(t, ca, filepath.Join(dir, "web"), "web.example")
	cfg := configured(t, write(t, "policy.yaml", goodPolicy))
	cfg.Identity = &identity.FileConfig{Dir: filepath.Join(dir, "own")}
	cfg.Listeners = append(cfg.Listeners, config.Listener{
		Listener:       gateway.Listener{Name: "web", Address: "127.0.0.1:0"},
		WebCertificate: filepath.Join(dir, "web", "svid.pem"), WebKey: filepath.Join(dir, "web", "svid_key.pem"),
	})
	cfg.Gateway.Admin.Address = "127.0.0.1:0"
	cfg.Records = []config.RecordSink{{Name: "records", File: filepath.Join(dir, "records.jsonl")}}
	return cfg
}

// TestErrorsOfOpen checks the error for each part that cannot be opened, and that
// nothing stays open. Each row fails after something else was opened.
func TestErrorsOfOpen(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	for _, row := range []struct {
		name   string
		change func(*config.Config, *Options)
		want   string // text in the error
		checks bool   // Check, which opens nothing, finds no error
		warns  bool   // Check warns of the error
	}{
		{"no identity", func(c *config.Config, _ *Options) { c.Identity.Dir += "-not" }, "identity: ", false, false},
		{"no policy", func(c *config.Config, _ *Options) { c.Policy[0] += "-not" }, "no such file", false, false},
		{"a policy for everyone, without a trust domain", func(c *config.Config, _ *Options) {
			c.Policy, c.Identity, c.Listeners = []string{write(t, "policy.yaml", forEverybody)}, nil, c.Listeners[:1]
		}, "trust_domains", false, false},
		{"no web certificate", func(c *config.Config, _ *Options) { c.Listeners[1].WebKey += "-not" }, "listener web: ", false, false},
		{"an unknown exporter of telemetry", func(_ *config.Config, o *Options) {
			t.Setenv("OTEL_TRACES_EXPORTER", "pigeon")
			o.Getenv = os.Getenv
		}, "the trace exporter", true, true},
		{"records for OpenTelemetry without an endpoint", func(c *config.Config, _ *Options) {
			c.Records = append(c.Records, config.RecordSink{Name: "collector", OTLP: true})
		}, "records: sink collector: ", true, true},
		{"a record file that is a directory", func(c *config.Config, _ *Options) { c.Records[0].File = t.TempDir() }, "records: sink records: ", true, false},
		{"a record file that is a device and to be rotated", func(c *config.Config, _ *Options) {
			c.Records[0].File, c.Records[0].Rotate.Keep = os.DevNull, 2
		}, "records: sink records: rotate " + os.DevNull + ": it is no regular file, which alone can be rotated; leave out rotate", true, false},
		{"a name server without an address", func(c *config.Config, _ *Options) { c.Resolver.Servers = []resolve.Server{{}} }, "server", false, false},
		{"an address that is taken", func(c *config.Config, _ *Options) { c.Listeners[1].Address = taken.Addr().String() }, "is taken", true, false},
		{"an admin address that is taken", func(c *config.Config, _ *Options) { c.Gateway.Admin.Address = taken.Addr().String() }, "admin: ", true, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			cfg, opts := full(t), options()
			row.change(&cfg, &opts)
			if p, err := Open(t.Context(), cfg, opts); err == nil || p != nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("Open returned %v, %v; want an error with %q", p, err, row.want)
			}
			if conn, err := net.Dial("unix", strings.TrimPrefix(cfg.Listeners[0].Address, "unix:")); err == nil {
				_ = conn.Close()
				t.Error("a listener is open")
			}
			checked, err := Check(t.Context(), cfg, opts)
			if (err == nil) != row.checks || row.warns != strings.Contains(strings.Join(checked.Warnings, "\n"), row.want) {
				t.Errorf("Check returned %q, %v", checked.Warnings, err)
			}
		})
	}
}

// TestCheckOpensNothing checks that Check returns what would come into force, and does
// not even create the file of records.
func TestCheckOpensNothing(t *testing.T) {
	cfg := full(t)
	got, err := Check(t.Context(), cfg, options())
	if err != nil || got.Version == "" || len(got.Warnings) > 0 {
		t.Errorf("checked: %+v, %v", got, err)
	}
	if _, err := os.Stat(cfg.Records[0].File); !os.IsNotExist(err) {
		t.Errorf("the file of records: %v", err)
	}
	cfg.Listeners[0].ID = spiffeid.RequireFromString("spiffe://td.example/stranger")
	if got, err := Check(t.Context(), cfg, options()); err != nil || len(got.Warnings) != 1 {
		t.Errorf("checked with a stranger: %+v, %v", got, err)
	}
	cfg.Policy = []string{write(t, "policy.yaml", forEverybody)}
	if got, err := Check(t.Context(), cfg, options()); err != nil || got.Version == "" || len(got.Warnings) > 0 {
		t.Errorf("checked with a policy for everybody: %+v, %v", got, err)
	}
	cfg.Policy = []string{t.TempDir()}
	if got, err := Check(t.Context(), cfg, options()); err != nil || got.Version != "" || len(got.Warnings) > 0 {
		t.Errorf("checked without a policy: %+v, %v", got, err)
	}
}

// TestServe serves a process, changes its files, and ends it. It checks that everything
// is closed and every record written.
func TestServe(t *testing.T) {
	cfg := full(t)
	p, err := Open(t.Context(), cfg, options())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range p.Listening() {
		names = append(names, l.Name)
	}
	if diff := cmp.Diff([]string{"own", "web", "admin"}, names); diff != "" {
		t.Errorf("listening (-want +got):\n%s", diff)
	}
	stop := serve(t, p, nil)
	generation := func() uint64 {
		if s := p.gateway.State(); s != nil {
			return s.Generation
		}
		return 0
	}
	eventually(t, "a policy is in force", func() bool { return generation() == 1 })
	replace(t, cfg.Policy[0], goodPolicy+"      - host: more.example\n")
	eventually(t, "another policy is in force", func() bool { return generation() == 2 })
	mint(t, newTestAuthority(t), cfg.Identity.Dir)
	eventually(t, "another authority is trusted", func() bool { return generation() == 3 })
	stop()
	for _, l := range p.Listening() {
		if conn, err := net.Dial(l.Addr.Network(), l.Addr.String()); err == nil {
			_ = conn.Close()
			t.Errorf("%s is open", l.Name)
		}
	}
	text, err := os.ReadFile(cfg.Records[0].File)
	for event, want := range map[string]int{"policy.reload": 3, "identity.rotate": 1} {
		if got := bytes.Count(text, []byte(`"event":"`+event+`"`)); got != want {
			t.Errorf("%d records of %s, %v; want %d:\n%s", got, event, err, want, text)
		}
	}
	if named := bytes.Count(text, []byte(`"instance":"`+p.telemetry.Instance()+`"`)); named != bytes.Count(text, []byte("\n")) {
		t.Errorf("%d records name the process:\n%s", named, text)
	}
}

// lines is an output that a test reads while it is written.
type lines struct {
	mu   sync.Mutex
	text []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	return len(p), nil
}

// has reports whether a text was written.
func (l *lines) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Contains(l.text, []byte(text))
}

// TestAHangupEndsWhatIsHeld checks that SIGHUP ends the tunnels that a held policy
// forbids. The policy is held because it would close the tunnels of all identities, of
// which there are two.
func TestAHangupEndsWhatIsHeld(t *testing.T) {
	cfg, opts := configured(t, write(t, "policy.yaml", goodPolicy+"  - {id: spiffe://td.example/other, allow: [{host: api.example}]}\n")), options()
	cfg.Gateway.MaxRevoke = live.MaxRevoke{Share: 0.3, AtLeast: 1}
	var records lines
	opts.Stdout = &records
	p, err := Open(t.Context(), cfg, opts)
	if err != nil {
		t.Fatal(err)
	}
	hangup := make(chan os.Signal)
	serve(t, p, hangup)
	eventually(t, "a policy is in force", func() bool { return p.gateway.State() != nil })
	dest, err := allowlist.ParseDestination("api.example:443")
	if err != nil {
		t.Fatal(err)
	}
	var ended atomic.Int32
	for _, id := range []spiffeid.ID{cfg.Listeners[0].ID, spiffeid.RequireFromString("spiffe://td.example/other")} {
		open := &live.Entry{Decided: live.Decided{
			Request: allowlist.Request{ID: id, Proof: allowlist.ProofListener, Dest: dest}, Addr: netip.MustParseAddrPort("8.8.8.8:443"),
			FirstBytes: live.FirstBytesHello,
		}}
		open.End = func(tunnel.Reason, allowlist.Reason) {
			p.gateway.Registry().Remove(open)
			ended.Add(1)
		}
		p.gateway.Registry().Add(open)
	}
	replace(t, cfg.Policy[0], strings.ReplaceAll(goodPolicy, "api.example", "other.example"))
	eventually(t, "the policy is held", func() bool { return records.has("held: 2 that it forbids stay open, of 2 of 2 identities") })
	if held := p.gateway.Stats().Held; p.gateway.State().Generation != 2 || ended.Load() > 0 || held.Identities != 2 {
		t.Errorf("generation %d, %d have ended, held %+v", p.gateway.State().Generation, ended.Load(), held)
	}
	hangup <- syscall.SIGHUP
	eventually(t, "the tunnels have ended", func() bool { return ended.Load() == 2 })
	if held := p.gateway.Stats().Held; !held.IsZero() {
		t.Errorf("held %+v", held)
	}
}
