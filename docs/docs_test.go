// Package docs tests the documents: their blocks are loaded or run, and the generated
// parts are compared with the code.
package docs

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
)

var update = flag.Bool("update", false, "write the generated documents")

func documents(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"../*.md", "*.md", "adr/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	if len(all) < 8 {
		t.Fatalf("found only %d documents", len(all))
	}
	return all
}

// TestGeneratedReasons compares docs/reasons.md with the table in the code.
// `make generate` writes the file.
func TestGeneratedReasons(t *testing.T) {
	var b bytes.Buffer
	b.WriteString(`# Reasons

Every refusal has exactly one reason from this table. The status tells the kinds of refusals apart:

- 400, 405, 408, 431 and 505: the request was malformed, too large, too slow or of a kind that the gateway does not support.
- 403: the policy denied the request. Nothing was sent on.
- 407: the caller did not prove an identity that the gateway accepts.
- 429: a limit of the caller was reached. Nothing was sent on.
- 502 and 504: the look-up or the destination failed, or the gateway cut the exchange off after the request had been sent on.
- 503: the gateway could not serve the request. Nothing was sent on.
- 500: the gateway has a fault.
- none: there is no HTTP answer, because the tunnel was already open, the TLS handshake failed, or the caller left.

For DNS queries, [dns.md](dns.md#what-is-answered) says which response each reason has.

The table is generated from the code (` + "`make generate`" + `).

| Reason | Status | Proxy-Status error | What the caller is told |
|---|---|---|---|
`)
	for _, r := range allowlist.Reasons() {
		info := r.Info()
		status, proxyError := "none", "none"
		if info.Status != 0 {
			status, proxyError = fmt.Sprint(info.Status), "`"+info.ProxyError+"`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", info.Token, status, proxyError, told(info))
	}
	b.WriteString("\nIf RFC 9209 has an error type for the cause, a `dial-failed` or `response-failed` has this type instead:")
	for _, c := range allowlist.Causes() {
		b.WriteString(" `" + c.ProxyError() + "`")
	}
	b.WriteString(`.

A request is also refused as ` + "`busy`" + ` if it needs a file descriptor and none is left, or if too many queries to name servers are in progress. The gateway then tried no address, and the record has no ` + "`address`" + `.

A refusal never names a resolved address. The record has the class of a refused address in ` + "`address_class`" + `.
`)
	if *update {
		write(t, "reasons.md", b.String())
	}
	got, err := os.ReadFile("reasons.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != b.String() {
		t.Error("docs/reasons.md differs from the code: run make generate")
	}
}

func told(info allowlist.ReasonInfo) string {
	switch info.Status {
	case 403:
		return "HOST:PORT " + info.Text + " IDENTITY"
	case 502, 504:
		return "HOST:PORT " + info.Text
	}
	return info.Text
}

// TestLinks checks the targets of relative links between and inside the documents.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]*)(?:#([^)]+))?\)`)
	for _, doc := range documents(t) {
		data, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(data), -1) {
			target := doc
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(doc), m[1])
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: the link to %s leads nowhere", doc, m[1])
			} else if m[2] != "" && !hasHeading(t, target, m[2]) {
				t.Errorf("%s: %s has no heading for #%s", doc, target, m[2])
			}
		}
	}
}

// hasHeading reports whether a document has a heading with that anchor.
func hasHeading(t *testing.T, path, anchor string) bool {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		title := strings.TrimSpace(strings.TrimLeft(line, "#"))
		if strings.HasPrefix(line, "#") && strings.ReplaceAll(strings.ToLower(title), " ", "-") == anchor {
			return true
		}
	}
	return false
}

// TestIssueForms checks that each issue form has what GitHub requires, and each id only
// once.
func TestIssueForms(t *testing.T) {
	for _, name := range []string{"fault.yml", "change.yml"} {
		path := filepath.Join("../.github/ISSUE_TEMPLATE", name)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		keys, ids := map[string]bool{}, map[string]bool{}
		for key, value := range parseYAML(t, path, text).Fields() {
			keys[key] = true
			if key == "body" {
				for element := range value.Items() {
					checkFormElement(t, path, element, ids)
				}
			}
		}
		if !keys["name"] || !keys["description"] || len(ids) < 3 {
			t.Errorf("%s: it lacks a name, a description or questions", path)
		}
	}
}

// checkFormElement checks a part of the body of an issue form and notes its id.
func checkFormElement(t *testing.T, path string, element *strictyaml.Node, ids map[string]bool) {
	t.Helper()
	kind, id, shown := "", "", ""
	for key, value := range element.Fields() {
		switch key {
		case "type":
			kind, _ = value.Word("markdown", "textarea", "input")
		case "id":
			id, _ = value.Text()
		case "attributes":
			for name, attribute := range value.Fields() {
				if name == "label" || name == "value" {
					shown, _ = attribute.Text()
				}
			}
		}
	}
	if shown == "" || (kind == "markdown") != (id == "") || ids[id] {
		t.Errorf("%s: a part of type %q with the id %q shows %q", path, kind, id, shown)
	}
	ids[id] = id != ""
}
