package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// message returns a protobuf message with a length-delimited field for each of fields.
func message(number protowire.Number, fields ...[]byte) []byte {
	var m []byte
	for _, f := range fields {
		m = protowire.AppendBytes(protowire.AppendTag(m, number, protowire.BytesType), f)
	}
	return m
}

// request returns a request with two resources: one with 2 and 1 spans in two scopes, and
// one with 1 span.
func request() []byte {
	span := []byte("\x0a\x01x") // any field
	first := append(message(1, []byte("\x0a\x00")), message(2, message(2, span, span), message(2, span))...)
	return message(1, first, message(2, message(2, span)))
}

func TestCountSpans(t *testing.T) {
	for name, test := range map[string]struct {
		request []byte
		want    int64
		bad     bool
	}{
		"no span in an empty request":        {nil, 0, false},
		"four spans in two resources":        {request(), 4, false},
		"a field that is something else":     {append(request(), "\x98\x06\x01"...), 4, false},
		"a request that ends within a field": {request()[:10], 0, true},
		"no protobuf":                        {[]byte("hello"), 0, true},
	} {
		got, err := countSpans(test.request)
		if got != test.want || (err != nil) != test.bad {
			t.Errorf("%s: got %d, %v", name, got, err)
		}
	}
}

func TestCollectorCountsOverHTTP(t *testing.T) {
	server := httptest.NewServer(newHandler())
	defer server.Close()
	for _, test := range []struct {
		body []byte
		want int
	}{
		{request(), http.StatusOK},
		{[]byte("hello"), http.StatusBadRequest},
		{request(), http.StatusOK},
	} {
		resp, err := server.Client().Post(server.URL+"/v1/traces", "application/x-protobuf", bytes.NewReader(test.body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != test.want {
			t.Errorf("status %d, want %d", resp.StatusCode, test.want)
		}
	}
	resp, err := server.Client().Get(server.URL + "/spans")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); strings.TrimSpace(string(body)) != "8" || err != nil {
		t.Errorf("got %q, %v; want 8", body, err)
	}
}
