package e2e

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/e2e/missing"
)

// nodePath says where Debian has the packages of Node.js.
const nodePath = "NODE_PATH=/usr/share/nodejs"

// needUndici skips a test if Node.js has no undici.
func needUndici(t *testing.T, dir string) {
	t.Helper()
	if _, _, code := run(t, dir, "env", nodePath, "node", "-e", "require('undici')"); code != 0 {
		missing.Skip(t, "undici is missing: install node-undici to run this test")
	}
}

// TestAnswersWhileTheClientSends runs clients that read the answer only after they have
// sent the whole body. They must get the answer of the gateway, which reads none of the
// body of a request that it denies, and the answer of an origin that does not wait for
// the body.
func TestAnswersWhileTheClientSends(t *testing.T) {
	need(t, "python3", "curl", "node", "java", "javac")
	origin := hasty(t)
	s := newSite(t, origin)
	p := start(t, s.dir, "serve")
	secure, own := p.listening(t, "mtls"), p.listening(t, "own")
	host, port, securePort := own.Addr().String(), strconv.Itoa(int(own.Port())), strconv.Itoa(int(secure.Port()))
	data, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.dir, map[string]string{"body": strings.Repeat("b", 3<<20)})
	python, script := filepath.Join(data, "upload.py"), filepath.Join(data, "upload.cjs")
	if _, stderr, code := run(t, s.dir, "javac", append(lightJVM("-J"), "-d", ".", filepath.Join(data, "Upload.java"))...); code != 0 {
		t.Fatal(stderr)
	}
	java := slices.Concat([]string{"java"}, lightJVM(""), []string{"-cp", ".", "Upload"})
	var uploads []string // URL and size of each body
	var want string
	for _, size := range []int{64 << 10, 3 << 20} {
		bytes := strconv.Itoa(size)
		uploads = append(uploads, "http://secret.example/", bytes, "http://allowed.example:"+strconv.Itoa(origin)+"/up", bytes)
		want += "403\n413\n"
	}
	curl := []string{"curl", "-sS", "-w", "%{http_code}\n", "--noproxy", "", "--proxy", "http://" + own.String(), "-H", "Expect:", "-H", "Transfer-Encoding: chunked", "--data-binary", "@body"}
	for i := 0; i < len(uploads); i += 2 {
		curl = append(curl, "-o", "out", uploads[i])
	}
	for _, client := range []struct {
		name string
		args []string
	}{
		{"Python", append([]string{"python3", python, "http", host, port}, uploads...)},
		{"Python over TLS", append([]string{"python3", python, "https", host, securePort}, uploads...)},
		{"curl", curl},
		{"Node's http", append([]string{"node", script, "http", host, port}, uploads...)},
		{"undici", append([]string{"env", nodePath, "node", script, "undici", host, port}, uploads...)},
		{"Java's HttpURLConnection", slices.Concat(java, []string{"old", host, port}, uploads)},
		{"Java's HttpClient", slices.Concat(java, []string{"new", host, port}, uploads)},
	} {
		t.Run(client.name, func(t *testing.T) {
			t.Parallel()
			if client.name == "undici" {
				needUndici(t, s.dir)
			}
			if stdout, stderr, _ := run(t, s.dir, client.args[0], client.args[1:]...); stdout != want {
				t.Errorf("%v: %q, want %q: %s", uploads, stdout, want, stderr)
			}
		})
	}
}

// lightJVM returns the options of a Java virtual machine that runs for a moment only: it
// spends no time on optimization and starts no threads to collect garbage. prefix is what
// the command wants before each option.
func lightJVM(prefix string) []string {
	return []string{prefix + "-XX:TieredStopAtLevel=1", prefix + "-XX:+UseSerialGC"}
}

// hasty starts an origin that answers 413 when it has read the head of a request, and
// then closes its sending direction at once. It returns the origin's port.
func hasty(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			go func() {
				defer func() { _ = conn.Close() }()
				_ = conn.SetDeadline(time.Now().Add(patience))
				reader := bufio.NewReader(conn)
				if _, err := http.ReadRequest(reader); err != nil {
					return
				}
				_, _ = io.WriteString(conn, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nbig\n")
				_ = conn.(*net.TCPConn).CloseWrite()
				_, _ = io.Copy(io.Discard, reader)
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}
