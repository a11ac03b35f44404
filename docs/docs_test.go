// Package docs tests the documents: their blocks are loaded or run, and the generated
// parts are compared with the code.
package docs

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/policyfile"
	"github.com/exeat-dev/exeat/cmd/exeat/config"
)

var update = flag.Bool("update", false, "write the generated documents")

// block is a fenced block of a document.
type block struct {
	place string
	info  []string
	text  string
}

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

func blocks(t *testing.T, path string) []block {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []block
	var current *block
	for i, line := range strings.Split(string(data), "\n") {
		switch {
		case strings.HasPrefix(line, "```") && current == nil:
			current = &block{place: fmt.Sprintf("%s:%d", path, i+1), info: strings.Fields(strings.TrimPrefix(line, "```"))}
		case strings.HasPrefix(line, "```"):
			all = append(all, *current)
			current = nil
		case current != nil:
			current.text += line + "\n"
		}
	}
	if current != nil {
		t.Fatalf("%s: the block is never closed", current.place)
	}
	return all
}

func (b block) is(words ...string) bool {
	for i, w := range words {
		if i >= len(b.info) || b.info[i] != w {
			return false
		}
	}
	return true
}

// unnamed is the file name of a block without file=NAME.
const unnamed = "block.yaml"

// file returns the NAME of file=NAME, or unnamed.
func (b block) file() string {
	for _, w := range b.info {
		if name, ok := strings.CutPrefix(w, "file="); ok {
			return name
		}
	}
	return unnamed
}

// binary builds exeat, and returns its directory.
func binary(t *testing.T) string {
	t.Helper()
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "../cmd/exeat")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building exeat: %v\n%s", err, out)
	}
	return bin
}

// TestBlocks loads or runs every block whose info string has a kind, and compares what
// the commands print with the output in the document. The blocks of a document share a
// directory, and run in their order.
func TestBlocks(t *testing.T) {
	bin := binary(t)
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for _, doc := range documents(t) {
		dir, printed := t.TempDir(), ""
		for _, b := range blocks(t, doc) {
			switch {
			case b.is("yaml", "policy"):
				counts["policy"]++
				path := filepath.Join(dir, b.file())
				write(t, path, b.text)
				loadPolicy(t, b.place, path)
			case b.is("yaml", "config"):
				counts["config"]++
				path := filepath.Join(dir, b.file())
				write(t, path, b.text)
				if _, err := config.Load(path); err != nil {
					t.Errorf("%s: %v", b.place, err)
				}
			case b.is("sh", "run"):
				counts["run"]++
				where := dir
				if strings.Contains(b.text, "./cmd/exeat") {
					where = root
				}
				printed = runShell(t, b, where, bin)
			case b.is("text", "output"):
				counts["output"]++
				if printed != b.text {
					t.Errorf("%s: the block above prints\n%s", b.place, printed)
				}
			case b.is("json") && b.file() != unnamed:
				write(t, filepath.Join(dir, b.file()), b.text)
			case b.is("yaml"):
				t.Errorf("%s: mark the block as policy or config, so that it is loaded", b.place)
			}
		}
	}
	if counts["policy"] < 2 || counts["config"] < 2 || counts["run"] < 2 || counts["output"] < 1 {
		t.Errorf("too few blocks were tested: %v", counts)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func loadPolicy(t *testing.T, place, path string) {
	t.Helper()
	opts := policyfile.Options{TrustDomain: spiffeid.RequireTrustDomainFromString("prod.example")}
	if _, err := policyfile.Load(opts, path); err != nil {
		t.Errorf("%s: %v", place, err)
	}
}

func runShell(t *testing.T, b block, dir, bin string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", b.text)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", b.place, err, out)
	}
	return string(out)
}

// TestGeneratedReasons compares docs/reasons.md with the table in the code.
// `make generate` writes the file.
func TestGeneratedReasons(t *testing.T) {
	var b bytes.Buffer
	b.WriteString(`# Reasons

Every refusal has one reason of this closed set. 403 means that the policy refused the request and nothing was sent; 407 that the identity was not accepted; 502 and 504 that the destination failed, or that an exchange was cut off after it began; 503 that the gateway could not serve the request and nothing was sent. The table is generated from the code (` + "`make generate`" + `).

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
	b.WriteString("\n`dial-failed` and `response-failed` have another error type where RFC 9209 has one for the cause:")
	for _, c := range allowlist.Causes() {
		b.WriteString(" `" + c.ProxyError() + "`")
	}
	b.WriteString(`.

A request is also refused as ` + "`busy`" + ` if it needs a file descriptor and none is left, or if too many queries to name servers are outstanding: in that case nothing was tried, and the record names no ` + "`address`" + `.

A refusal never names a resolved address; the record has its class in ` + "`address_class`" + `.
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

// TestLinks checks the targets of relative links between the documents.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#([^)]+))?\)`)
	for _, doc := range documents(t) {
		data, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(data), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(doc), m[1])); err != nil {
				t.Errorf("%s: the link to %s leads nowhere", doc, m[1])
			}
			if m[2] != "" && !hasHeading(t, filepath.Join(filepath.Dir(doc), m[1]), m[2]) {
				t.Errorf("%s: %s has no heading for #%s", doc, m[1], m[2])
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
