package e2e

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

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
	if _, stderr, code := run(t, s.dir, "javac", "-d", ".", filepath.Join(data, "Upload.java")); code != 0 {
		t.Fatal(stderr)
	}
	for _, client := range []struct {
		name string
		args []string // URL and BYTES stand for the URL and the size of the body
	}{
		{"Python", []string{"python3", python, "http", host, port, "URL", "BYTES"}},
		{"Python over TLS", []string{"python3", python, "https", host, securePort, "URL", "BYTES"}},
		{"curl", []string{"curl", "-sS", "-o", "out", "-w", "%{http_code}\n", "--noproxy", "", "--proxy", "http://" + own.String(), "-H", "Expect:", "-H", "Transfer-Encoding: chunked", "--data-binary", "@body", "URL"}},
		{"Node's http", []string{"node", script, "http", host, port, "URL", "BYTES"}},
		{"undici", []string{"env", "NODE_PATH=/usr/share/nodejs", "node", script, "undici", host, port, "URL", "BYTES"}},
		{"Java's HttpURLConnection", []string{"java", "-cp", ".", "Upload", "old", host, port, "URL", "BYTES"}},
		{"Java's HttpClient", []string{"java", "-cp", ".", "Upload", "new", host, port, "URL", "BYTES"}},
	} {
		t.Run(client.name, func(t *testing.T) {
			t.Parallel()
			for _, size := range []int{64 << 10, 3 << 20} {
				for url, want := range map[string]string{
					"http://secret.example/":                                 "403",
					"http://allowed.example:" + strconv.Itoa(origin) + "/up": "413",
				} {
					args := make([]string, len(client.args))
					for i, arg := range client.args {
						args[i] = strings.NewReplacer("URL", url, "BYTES", strconv.Itoa(size)).Replace(arg)
					}
					stdout, stderr, _ := run(t, s.dir, args[0], args[1:]...)
					if stdout != want+"\n" {
						t.Errorf("%d bytes to %s: %q %s", size, url, stdout, stderr)
					}
				}
			}
		})
	}
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
