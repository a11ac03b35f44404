package gateway

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace/noop"
	"go.uber.org/goleak"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/identity/authority"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/gateway/gatewaytest"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests; no wait should come near it.
const patience = 30 * time.Second

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // all arguments are constants of the tests
	}
	return v
}

// id returns the SPIFFE ID of a workload in the test's trust domain.
func id(name string) spiffeid.ID { return spiffeid.RequireFromString("spiffe://test.example/" + name) }

// to returns a rule that allows a host at every port, at addresses of loopback and of a
// private network.
func to(host string) allowlist.Rule {
	return allowlist.Rule{
		Host: must(allowlist.ParseHostPattern(host)), Ports: []allowlist.PortRange{{First: 1, Last: 65535}},
		Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("10.77.0.0/16")},
	}
}

// allowing returns a policy whose rules apply to every identity.
func allowing(version string, rules ...allowlist.Rule) *allowlist.Policy {
	return must(allowlist.Compile(allowlist.Spec{Version: version, Entries: []allowlist.Entry{{
		Pattern: must(allowlist.ParseIdentityPattern("spiffe://test.example/**")), Allow: rules,
	}}}))
}

func cutting(names ...string) *allowlist.QuarantineList {
	lines := make([]allowlist.Quarantined, 0, len(names))
	for _, name := range names {
		lines = append(lines, allowlist.Quarantined{Pattern: must(allowlist.ParseIdentityPattern(id(name).String()))})
	}
	return allowlist.NewQuarantineList(lines)
}

// asked returns sidecar's request for a host at port 443.
func asked(host string) allowlist.Request {
	return allowlist.Request{
		ID: id("sidecar"), Proof: allowlist.ProofListener, Dest: must(allowlist.ParseDestination(host + ":443")), Time: time.Now(),
	}
}

// newAuthority returns a new authority of the test's trust domain.
func newAuthority(t *testing.T) *authority.Authority {
	t.Helper()
	ca, err := authority.New(authority.Config{TrustDomain: id("x").TrustDomain()})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// snapshot returns the gateway's identity, issued by the first of the authorities that
// it trusts.
func snapshot(t *testing.T, generation uint64, trusted ...*authority.Authority) *identity.Snapshot {
	t.Helper()
	var all []*x509.Certificate
	for _, ca := range trusted {
		all = append(all, ca.X509Bundle().X509Authorities()...)
	}
	svid, err := trusted[0].Mint(authority.Options{ID: id("gateway")})
	if err != nil {
		t.Fatal(err)
	}
	s, err := identity.NewSnapshot(identity.SnapshotConfig{
		Certificate: svid.TLS(), Bundles: []*x509bundle.Bundle{x509bundle.FromX509Authorities(id("x").TrustDomain(), all)}, Generation: generation,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sink keeps the records of a gateway.
type sink struct{ records chan audit.Record }

func (s *sink) Write(_ context.Context, records []*audit.Record) error {
	for _, r := range records {
		s.records <- *r
	}
	return nil
}

// rig is a gateway whose sources the test controls.
type rig struct {
	*Gateway
	policies *gatewaytest.Policy
	host     func() ([]netip.Addr, error) // returns the host's addresses; nil means none
	sink     sink
	recorder *audit.Recorder
	loads    chan Load
	end      func() // ends serving; nil if the gateway is not served
}

// newRig returns a gateway that is not served yet. It has one listener on a unix
// socket, whose callers all have the identity sidecar.
func newRig(t *testing.T, policy *allowlist.Policy, change func(*Config)) *rig {
	t.Helper()
	r := &rig{policies: gatewaytest.NewPolicy(policy)}
	cfg := r.config(t)
	if change != nil {
		change(&cfg)
	}
	var err error
	if r.Gateway, err = New(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func (r *rig) config(t *testing.T) Config {
	t.Helper()
	r.sink.records, r.loads = make(chan audit.Record, audit.DefaultQueue), make(chan Load, 1000)
	var err error
	r.recorder, err = audit.New(context.Background(), audit.Config{
		Sinks: []audit.SinkConfig{{Name: "test", Sink: &r.sink}}, Tracer: noop.NewTracerProvider().Tracer(""),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.rest(t) })
	return Config{
		Policy: r.policies, Recorder: r.recorder, Log: slog.New(slog.DiscardHandler),
		Resolver: Resolver{Resolve: func(context.Context, *allowlist.Decision) ([]allowlist.Resolved, error) {
			return []allowlist.Resolved{{Addr: netip.MustParseAddr("127.0.0.1")}}, nil
		}},
		Listeners: []Listener{{Name: "own", Address: "unix:" + filepath.Join(t.TempDir(), "s"), Identity: Fixed, ID: id("sidecar")}},
		HostAddresses: func() ([]netip.Addr, error) {
			if r.host == nil {
				return nil, nil
			}
			return r.host()
		},
		Metrics: Metrics{Loaded: func(l Load) { r.loads <- l }},
	}
}

// serve serves the gateway until stop is called, or the test ends. The channel served
// is closed when Serve has returned.
func (r *rig) serve(t *testing.T) (stop func(), served <-chan struct{}) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Serve(ctx)
	}()
	r.end = func() {
		stop()
		<-done
	}
	t.Cleanup(r.end)
	return stop, done
}

// next waits for the next record, which must be of the given event.
func (r *rig) next(t *testing.T, event audit.Event) audit.Record {
	t.Helper()
	select {
	case rec := <-r.sink.records:
		if rec.Event != event {
			t.Fatalf("record %+v, want the event %s", rec, event)
		}
		return rec
	case <-time.After(patience):
		t.Fatalf("no record of the event %s", event)
		return audit.Record{}
	}
}

// rest closes the gateway and its recorder, and returns the records that the test has
// not read.
func (r *rig) rest(t *testing.T) []audit.Record {
	t.Helper()
	if r.end != nil {
		r.end()
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := r.recorder.Close(ctx); err != nil {
		t.Error(err)
	}
	var left []audit.Record
	for len(r.sink.records) > 0 {
		left = append(left, <-r.sink.records)
	}
	return left
}

// load waits for the result of the next load.
func (r *rig) load(t *testing.T) Load {
	t.Helper()
	select {
	case l := <-r.loads:
		return l
	case <-time.After(patience):
		t.Fatal("nothing is loaded")
		return ""
	}
}

// told returns the results of loads so far.
func (r *rig) told() []Load {
	var all []Load
	for len(r.loads) > 0 {
		all = append(all, <-r.loads)
	}
	return all
}

// version returns the version of the policy in force, or "" if there is none.
func (r *rig) version() string {
	if s := r.State(); s != nil {
		return s.Policy.Version()
	}
	return ""
}

// register registers an entry as a tunnel does. It is allowed while sidecar may reach
// the host.
func (r *rig) register(host string) (entry *live.Entry, ended <-chan tunnel.Reason) {
	return r.registerOf("sidecar", host)
}

// holding sets max_revoke so that a policy is held if it ends something of more than
// one identity.
func holding(c *Config) { c.MaxRevoke = live.MaxRevoke{Share: 0.3, AtLeast: 1} }

// registerOf registers an entry of any caller; see register.
func (r *rig) registerOf(name, host string) (entry *live.Entry, ended <-chan tunnel.Reason) {
	told := make(chan tunnel.Reason, 1)
	decided := live.Decided{Request: asked(host), Addr: netip.MustParseAddrPort("127.0.0.1:443"), FirstBytes: live.FirstBytesHello}
	decided.Request.ID = id(name)
	entry = &live.Entry{Start: time.Now(), Decided: decided, End: func(reason tunnel.Reason, _ allowlist.Reason) {
		r.Registry().Remove(entry)
		told <- reason
	}}
	r.Registry().Add(entry)
	return entry, told
}

// caller is a client's connection to the gateway.
type caller struct {
	net.Conn
	reader *bufio.Reader
}

func (r *rig) call(t *testing.T) *caller {
	t.Helper()
	at := r.Listening()[0].Addr
	conn, err := net.Dial(at.Network(), at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &caller{conn, bufio.NewReader(conn)}
}

// ask sends a request to an authority and returns the status of the answer.
func (c *caller) ask(t *testing.T, method, authority string) int {
	t.Helper()
	target := authority
	if method != http.MethodConnect {
		target = "http://" + authority + "/"
	}
	if _, err := io.WriteString(c, method+" "+target+" HTTP/1.1\r\nHost: "+authority+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(c.reader, &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	if method != http.MethodConnect {
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
	}
	return resp.StatusCode
}

// get sends a GET to an authority, and returns the status of the answer and whether
// it is the last one of the connection.
func (c *caller) get(t *testing.T, authority string) (status int, last bool) {
	t.Helper()
	if _, err := io.WriteString(c, "GET http://"+authority+"/ HTTP/1.1\r\nHost: "+authority+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Close
}

// newOrigin starts a server on loopback that answers requests, and echoes everything
// else.
func newOrigin(t *testing.T) (port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
				defer func() { _ = conn.Close() }()
				for lines := bufio.NewReader(conn); ; {
					line, err := lines.ReadString('\n')
					if err != nil {
						return
					}
					switch line {
					case "\r\n":
						line = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
					case "echo\n":
					default:
						continue
					}
					if _, err := io.WriteString(conn, line); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		stop()
		serving.Wait()
	})
	return netip.MustParseAddrPort(l.Addr().String()).String()[len("127.0.0.1:"):]
}

// echo sends a line through a tunnel and waits until it comes back.
func (c *caller) echo() error {
	if _, err := io.WriteString(c, "echo\n"); err != nil {
		return err
	}
	line, err := c.reader.ReadString('\n')
	if err == nil && line != "echo\n" {
		err = errors.New("another line came back: " + line)
	}
	return err
}
