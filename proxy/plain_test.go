package proxy_test

import (
	"strings"

	"github.com/exeat-dev/exeat/allowlist"
)

// refusedPlain returns plain requests that are refused without asking the policy.
func refusedPlain() []refusedHead {
	const (
		line = "POST http://allowed.example:PORT/ HTTP/1.1\r\nHost: allowed.example:PORT\r\n"
		body = "0\r\n\r\n"
	)
	framing := func(name, fields string) refusedHead {
		return head(name, line+fields+"\r\n"+body, allowlist.MalformedHeader)
	}
	rows := []refusedHead{
		framing("a length and chunks", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
		framing("chunks and a length", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
		framing("two lengths", "Content-Length: 5\r\nContent-Length: 6\r\n"),
		framing("the same length twice", "Content-Length: 5\r\nContent-Length: 5\r\n"),
		framing("a list of lengths", "Content-Length: 5, 5\r\n"),
		framing("a length with a sign", "Content-Length: +5\r\n"),
		framing("a length that overflows", "Content-Length: 99999999999999999999\r\n"),
		framing("an unknown coding", "Transfer-Encoding: xchunked\r\n"),
		framing("a coding before chunks", "Transfer-Encoding: gzip, chunked\r\n"),
		framing("chunks twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
		framing("chunks and identity", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
		framing("a coding behind a tab", "Transfer-Encoding: \x0bchunked\r\n"),
		framing("a folded coding", "Transfer-Encoding:\r\n chunked\r\n"),
		framing("a space before the colon", "Transfer-Encoding : chunked\r\n"),
		framing("a bare LF before a length", "X: a\nContent-Length: 5\r\n"),
		head("chunks in HTTP/1.0", "POST http://allowed.example:PORT/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"+body, allowlist.MalformedHeader),
		head("a plain request in HTTP/1.1 without Host", "GET http://allowed.example:PORT/ HTTP/1.1\r\n\r\n", allowlist.MissingHost),
		head("a plain request with two Hosts", "GET http://allowed.example:PORT/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", allowlist.DuplicateHost),
		head("a plain request in HTTP/2.0", "GET http://allowed.example:PORT/ HTTP/2.0\r\nHost: a\r\n\r\n", allowlist.UnsupportedVersion),
		head("a plain head over the limit", "GET http://allowed.example:PORT/ HTTP/1.1\r\nHost: a\r\nX: "+strings.Repeat("a", 70<<10)+"\r\n\r\n", allowlist.HeadTooLarge),
	}
	for _, text := range []string{
		"/", "//evil/", "*", "http:allowed.example/", "http:/allowed.example/", "http:///p", "http://", "HTTPS://allowed.example:PORT/", "wss://allowed.example:PORT/",
		"https://allowed.example:PORT/", "ftp://allowed.example:PORT/", "file:///etc/passwd", "unix:/run/x",
		"http://allowed.example:PORT@evil.example/", "http://user@allowed.example:PORT/", `http://allowed.example:PORT\@evil.example/`,
		"http://allowed.example:PORT/#fragment", `http://allowed.example:PORT/a\b`, "http://allowed.example:PORT/\xc3\xa9", "http://\xc3\xa9.example:PORT/", "http://allowed.example:PORT/%", "http://allowed.example:PORT/%zz",
		"http://allowed.example..:PORT/", "http://[allowed.example]:PORT/", "http://::1/", "http://[fe80::1%25eth0]/", "http://127.1/", "http://0x7f000001/", "http://2130706433/",
		"http://allowed%2eexample:PORT/", "http://xn--a.example:PORT/",
	} {
		rows = append(rows, plainTarget(text, allowlist.MalformedTarget))
	}
	for _, port := range []string{"0", "+80", "00080", "65536", "http"} {
		rows = append(rows, plainTarget("http://allowed.example:"+port+"/", allowlist.MalformedPort))
	}
	return rows
}

func plainTarget(text string, reason allowlist.Reason) refusedHead {
	return head("plain target "+brief(text), "GET "+text+" HTTP/1.1\r\nHost: allowed.example:PORT\r\n\r\n", reason)
}
