package e2e

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestDrainAnswersARequestThatIsUnderWay stops the process while a lookup waits for its
// name server.
func TestDrainAnswersARequestThatIsUnderWay(t *testing.T) {
	t.Parallel()
	dns, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dns.Close() }()
	s := newSite(t, 443)
	policy := "version: 1\nidentities: [{id: \"" + gateway + "\", allow: [{host: slow.example}]}]\n"
	config := strings.Replace(siteConfig, "resolver:\n", "resolver:\n  servers: [\""+dns.LocalAddr().String()+"\"]\n", 1)
	write(t, s.dir, map[string]string{"policy.yaml": policy, "exeat.yaml": config + "  dial: 2s\n"})
	p := start(t, s.dir, "serve")
	conn := p.dial(t, "own")
	if _, err := io.WriteString(conn, "CONNECT slow.example:443 HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := dns.ReadFrom(make([]byte, 512)); err != nil { // the query gets no answer
		t.Fatal(err)
	}
	p.signal(t, syscall.SIGTERM)
	p.stderr.line(t, regexp.MustCompile(`msg=draining`))
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect})
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusGatewayTimeout {
		t.Errorf("answered %s, want 504", resp.Status)
	}
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestADrainLosesNoRequest runs clients that post one request after the other on a kept
// connection, and never repeat one. While the process drains, every request must be
// answered; a client opens a new connection when an answer says that it was the last one.
func TestADrainLosesNoRequest(t *testing.T) {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
	}))
	defer origin.Close()
	port := origin.Listener.Addr().(*net.TCPAddr).Port
	s := newSite(t, port)
	write(t, s.dir, map[string]string{"exeat.yaml": strings.Replace(siteConfig, "drain_delay: 0s", "drain_delay: 1s", 1)})
	p := start(t, s.dir, "serve")
	addr := p.listening(t, "own").String()
	host := "allowed.example:" + strconv.Itoa(port)
	const clients = 16
	var asking sync.WaitGroup
	var began sync.WaitGroup
	began.Add(clients)
	for range clients {
		asking.Go(func() {
			begin := sync.OnceFunc(began.Done)
			defer begin()
			told := 0 // number of answers that announced the end of their connection
			for {
				conn, err := net.Dial("tcp", addr)
				if err != nil { // the listener has closed
					break
				}
				n, last := postAll(conn, host, begin)
				_ = conn.Close()
				if last {
					told++
				}
				if n == 0 && !last { // it was never accepted: the listener has closed
					break
				}
				if !last {
					t.Errorf("a connection ended behind %d answers, and no answer had said so", n)
					break
				}
			}
			if told == 0 {
				t.Error("no answer says that it is the last one")
			}
		})
	}
	began.Wait()
	p.signal(t, syscall.SIGTERM)
	asking.Wait()
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// postAll posts over a connection until an answer is the last one, or none comes. It
// calls begin after the first answer.
func postAll(conn net.Conn, host string, begin func()) (answers int, last bool) {
	if conn.SetDeadline(time.Now().Add(patience)) != nil {
		return 0, false
	}
	for reader := bufio.NewReader(conn); ; answers++ {
		if _, err := io.WriteString(conn, "POST http://"+host+"/ HTTP/1.1\r\nHost: "+host+"\r\nContent-Length: 2\r\n\r\nok"); err != nil {
			return answers, false
		}
		resp, err := http.ReadResponse(reader, nil)
		if err != nil {
			return answers, false
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode == http.StatusOK && string(body) != "ok" {
			return answers, false
		}
		begin()
		if resp.Close {
			return answers + 1, true
		}
	}
}
