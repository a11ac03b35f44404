package proxy_test

import "testing"

// TestViaNamesTheVersionOfARequest checks that Via has the version in which the client has
// sent the request. The origin always gets HTTP/1.1. TestForwardedAnswers has rows for
// answers.
func TestViaNamesTheVersionOfARequest(t *testing.T) {
	r := newPlainRig(t, ok)
	for _, version := range []string{"1.0", "1.1"} {
		r.call(t, "builder").ask(t, "GET "+r.url("allowed.example", "/")+" HTTP/"+version+"\r\nHost: x\r\nVia: 1.0 fred\r\n\r\n")
		got := r.received(t)
		if via := got.Header["Via"]; len(via) != 2 || via[0] != "1.0 fred" || via[1] != version+" exeat" || got.Proto != "HTTP/1.1" {
			t.Errorf("of HTTP/%s the origin got Via %q in %s", version, via, got.Proto)
		}
		r.carried(t)
	}
}
