package admin

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAnswersProbesAndNothingElse(t *testing.T) {
	var sick, noted atomic.Bool
	s, err := Listen(t.Context(), Config{
		Address: "127.0.0.1:0",
		NotReady: func() []string {
			if sick.Load() {
				return []string{"policy: none", "identity: expired"}
			}
			return nil
		},
		Notes: func() []string {
			if noted.Load() {
				return []string{"log: lost"}
			}
			return nil
		},
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "egress 1\n") }),
	})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	tests := []struct {
		method, path string
		sick, noted  bool
		status       int
		body         string
	}{
		{"GET", "/livez", true, true, 200, "ok\n"},
		{"GET", "/readyz", false, false, 200, "ok\n"},
		{"GET", "/readyz", true, false, 503, "policy: none\nidentity: expired\n"},
		{"GET", "/readyz", false, true, 200, "ok\nlog: lost\n"},
		{"GET", "/readyz", true, true, 503, "policy: none\nidentity: expired\nlog: lost\n"},
		{"GET", "/metrics", false, false, 200, "egress 1\n"},
		{"POST", "/readyz", false, false, 405, ""},
		{"GET", "/", false, false, 404, ""},
		{"GET", "/debug/pprof/", false, false, 404, ""},
	}
	for _, tt := range tests {
		sick.Store(tt.sick)
		noted.Store(tt.noted)
		req, err := http.NewRequestWithContext(t.Context(), tt.method, "http://"+s.Addr().String()+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != tt.status || tt.body != "" && string(body) != tt.body {
			t.Errorf("%s %s (sick %v): %d %q, want %d %q", tt.method, tt.path, tt.sick, resp.StatusCode, body, tt.status, tt.body)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestMistakes(t *testing.T) {
	first, err := Listen(t.Context(), Config{Address: "127.0.0.1:0", NotReady: func() []string { return nil }, Metrics: http.NotFoundHandler()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Close() }()
	_, err = Listen(t.Context(), Config{Address: first.Addr().String(), NotReady: func() []string { return nil }, Metrics: http.NotFoundHandler()})
	if err == nil || !strings.Contains(err.Error(), "is taken by another process") {
		t.Errorf("a taken port: %v", err)
	}
	if _, err := Listen(t.Context(), Config{Address: "127.0.0.1:0"}); err == nil {
		t.Error("listening without readiness is no error")
	}
}
