package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// TestClientsThatOfferHTTP2 runs clients that offer an upgrade to HTTP/2 (h2c) in
// requests over http://. The gateway drops the offer, and they get their answers in
// HTTP/1.1.
func TestClientsThatOfferHTTP2(t *testing.T) {
	need(t, "curl", "git", "cargo", "tar")
	dir := t.TempDir()
	origin := newOfferedOrigin(t, dir)
	s := newSite(t, portOf(t, origin.Server))
	p := start(t, s.dir, "serve")
	tap := newTap(t, p.listening(t, "own").String())
	proxy, url := "http://"+tap.addr, "http://allowed.example:"+strconv.Itoa(portOf(t, origin.Server))
	write(t, dir, map[string]string{
		"Cargo.toml": "[package]\nname = \"asks\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[lib]\npath = \"lib.rs\"\n[dependencies]\ntiny = { version = \"1\", registry = \"here\" }\n",
		"lib.rs":     "",
	})
	environment := []string{
		"CARGO_HOME=" + filepath.Join(dir, "cargo"), "CARGO_HTTP_PROXY=" + proxy, "CARGO_REGISTRIES_HERE_INDEX=sparse+" + url + "/index/",
		"http_proxy=" + proxy, "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
	}
	for _, e := range environment {
		name, value, _ := strings.Cut(e, "=")
		t.Setenv(name, value)
	}
	for _, c := range []struct {
		name string
		dir  string
		args []string
		says string
	}{
		{"curl", s.dir, []string{"curl", "-sS", "--fail-with-body", "--noproxy", "", "--proxy", proxy, "--http2", url + "/file"}, "hello"},
		{"git", s.dir, []string{"git", "-c", "http.version=HTTP/2", "ls-remote", url + "/repository.git"}, "refs/heads/main"},
		{"cargo", dir, []string{"cargo", "fetch"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			tap.forget()
			stdout, stderr, code := run(t, c.dir, c.args[0], c.args[1:]...)
			if code != 0 || !strings.Contains(stdout, c.says) {
				t.Errorf("exit code %d, got %q, %s", code, stdout, stderr)
			}
			if sent := tap.sent(); !strings.Contains(sent, "Upgrade: h2c\r\n") {
				t.Errorf("it offered no upgrade, so that this test shows nothing: %q", sent)
			}
			if n := origin.offers(); n > 0 {
				t.Errorf("the origin got %d upgrades", n)
			}
		})
	}
	if crate := filepath.Join(dir, "cargo", "registry", "cache"); !holds(t, crate, "tiny-1.0.0.crate") {
		t.Error("cargo has not fetched the crate")
	}
	if text := p.stdout.String(); strings.Contains(text, `"verdict":"deny"`) || !strings.Contains(text, `"verdict":"allow"`) {
		t.Errorf("records:\n%s", text)
	}
}

// offeredOrigin serves a file, a git repository and a registry with one crate. It counts
// the upgrades that it is offered.
type offeredOrigin struct {
	*httptest.Server
	mu    sync.Mutex
	count int
}

func newOfferedOrigin(t *testing.T, dir string) *offeredOrigin {
	t.Helper()
	crate := makeCrate(t, dir)
	makeRepository(t, dir)
	o := new(offeredOrigin)
	mux := http.NewServeMux()
	text := func(path, body string) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) })
	}
	text("/file", "hello\n")
	sum := sha256.Sum256(crate)
	text("/index/ti/ny/tiny", `{"name":"tiny","vers":"1.0.0","deps":[],"cksum":"`+hex.EncodeToString(sum[:])+`","features":{},"yanked":false}`+"\n")
	text("/crates/tiny/1.0.0/download", string(crate))
	mux.HandleFunc("GET /index/config.json", func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, `{"dl":"http://%s/crates"}`, r.Host)
	})
	mux.Handle("GET /repository.git/", http.FileServer(http.Dir(dir)))
	o.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade")+r.Header.Get("HTTP2-Settings") != "" {
			o.mu.Lock()
			o.count++
			o.mu.Unlock()
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(o.Close)
	return o
}

func (o *offeredOrigin) offers() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.count
}

// makeCrate packs an empty crate with tar.
func makeCrate(t *testing.T, dir string) []byte {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "tiny-1.0.0", "src"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, dir, map[string]string{
		"tiny-1.0.0/Cargo.toml": "[package]\nname = \"tiny\"\nversion = \"1.0.0\"\nedition = \"2021\"\n",
		"tiny-1.0.0/src/lib.rs": "",
	})
	if _, stderr, code := run(t, dir, "tar", "-czf", "tiny.crate", "tiny-1.0.0"); code != 0 {
		t.Fatal(stderr)
	}
	crate, err := os.ReadFile(filepath.Join(dir, "tiny.crate"))
	if err != nil {
		t.Fatal(err)
	}
	return crate
}

// makeRepository makes a git repository that any file server can serve.
func makeRepository(t *testing.T, dir string) {
	t.Helper()
	who := []string{"-c", "user.name=test", "-c", "user.email=test@test.example"}
	for _, args := range [][]string{
		{"init", "-q", "-b", "main", "work"},
		append(append([]string{"-C", "work"}, who...), "commit", "-q", "--allow-empty", "-m", "nothing"),
		{"clone", "-q", "--bare", "work", "repository.git"},
		{"-C", "repository.git", "update-server-info"},
	} {
		if _, stderr, code := run(t, dir, "git", args...); code != 0 {
			t.Fatalf("git %v: %s", args, stderr)
		}
	}
}

// holds reports whether a subdirectory of dir has a file of that name.
func holds(t *testing.T, dir, name string) bool {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*", name))
	if err != nil {
		t.Fatal(err)
	}
	return len(found) > 0
}

// tap relays connections to a listener, and keeps what clients send.
type tap struct {
	addr string
	mu   sync.Mutex
	text strings.Builder
}

func newTap(t *testing.T, to string) *tap {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tp := &tap{addr: l.Addr().String()}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { tp.relay(client, to) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		running.Wait()
	})
	return tp
}

// relay relays a connection until the client closes it.
func (tp *tap) relay(client net.Conn, to string) {
	defer func() { _ = client.Close() }()
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(client, server)
		_ = client.Close()
	})
	_, _ = io.Copy(io.MultiWriter(server, tp), client)
	_ = server.Close()
	back.Wait()
}

// Write implements io.Writer.
func (tp *tap) Write(p []byte) (int, error) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	return tp.text.Write(p)
}

func (tp *tap) sent() string {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	return tp.text.String()
}

func (tp *tap) forget() {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	tp.text.Reset()
}
