package docs

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist/policyfile"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/e2e/missing"
	"github.com/exeat-dev/exeat/e2e/site"
	"github.com/exeat-dev/exeat/proxy/audit/native"
)

// The info string of a block, after its three marks, says what TestBlocks does with it:
//
//	yaml policy file=F        F is written and loaded as a policy
//	yaml config file=F        the same for a configuration
//	yaml kubernetes           it must be YAML
//	json file=F               F is written
//	sh run needs=A,B          the shell must end with 0; A and B are programs that it uses
//	sh origin needs=A,B       a server for gateways to reach, which runs until the document ends
//	sh serve needs=A,B        a gateway that runs until the document ends
//	text output               what the block above has printed
//
// The blocks of a document share a directory, which is also their HOME, and which
// holds what is in testdata. A gateway listens on a free port wherever its
// configuration names a port of loopback, and so does an origin; the policies and the
// blocks behind it are changed accordingly, so that a document shows the port that a
// reader would use.

// block is a fenced block of a document.
type block struct {
	place string
	info  []string
	text  string
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

// lacks returns the first program of needs=A,B that is missing, or "".
func (b block) lacks() string {
	for _, w := range b.info {
		names, ok := strings.CutPrefix(w, "needs=")
		for name := range strings.SplitSeq(names, ",") {
			if _, err := exec.LookPath(name); ok && err != nil {
				return name
			}
		}
	}
	return ""
}

// demand skips a test where a program of needs=A,B is missing.
func (b block) demand(t *testing.T) {
	t.Helper()
	if name := b.lacks(); name != "" {
		missing.Skip(t, name+" is not installed")
	}
}

// program is exeat, which the first test that needs it builds.
var program struct {
	once sync.Once
	dir  string // "" if no test needs it
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	_ = os.RemoveAll(program.dir)
	os.Exit(code)
}

// binary returns the directory in which exeat is.
func binary(t *testing.T) string {
	t.Helper()
	program.once.Do(func() {
		program.dir, program.err = os.MkdirTemp("", "exeat-docs-") //nolint:usetesting // t.TempDir would be gone after the first of the tests
		if program.err == nil {
			program.err = site.Build(t.Context(), program.dir, site.Program)
		}
	})
	if program.err != nil {
		t.Fatal(program.err)
	}
	return program.dir
}

// TestBlocks loads or runs every block whose info string has a kind, and compares what
// the commands print with the output in the document.
func TestBlocks(t *testing.T) {
	bin := binary(t)
	for _, path := range documents(t) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			d := newDocument(t, bin)
			for _, b := range blocks(t, path) {
				d.try(t, b)
			}
		})
	}
}

// TestBlocksAreMarked checks that the documents have at least as many marked blocks of
// each kind as they had.
func TestBlocksAreMarked(t *testing.T) {
	want := map[string]int{"policy": 7, "config": 9, "run": 28, "origin": 1, "serve": 3, "output": 19}
	for _, path := range documents(t) {
		for _, b := range blocks(t, path) {
			if len(b.info) > 1 {
				want[b.info[1]]--
			}
		}
	}
	for kind, lacking := range want {
		if lacking > 0 {
			t.Errorf("the documents have %d blocks that are marked %s fewer than they had", lacking, kind)
		}
	}
}

// document is a document whose blocks are tried.
type document struct {
	dir, bin string
	shown    []string // loopback addresses, and ports of origins, as the document shows them
	used     []string // the addresses and ports that are listened on instead
	ran      bool     // the last shell block was run
	printed  string   // what the last shell block printed
}

func newDocument(t *testing.T, bin string) *document {
	t.Helper()
	d := &document{dir: t.TempDir(), bin: bin}
	if err := os.CopyFS(d.dir, os.DirFS("testdata")); err != nil {
		t.Fatal(err)
	}
	return d
}

// try does what the info string of a block says.
func (d *document) try(t *testing.T, b block) {
	t.Helper()
	path := filepath.Join(d.dir, b.file())
	switch {
	case b.is("yaml", "policy"):
		write(t, path, d.replace(b.text, d.shown, d.used))
		loadPolicy(t, b.place, path)
	case b.is("yaml", "config"):
		write(t, path, b.text)
		if _, err := config.Load(path); err != nil {
			t.Errorf("%s: %v", b.place, err)
		}
	case b.is("yaml", "kubernetes"):
		parseYAML(t, b.place, []byte(b.text))
	case b.is("yaml"):
		t.Errorf("%s: mark the block as policy or config, so that it is loaded, or as kubernetes", b.place)
	case b.is("json") && b.file() != unnamed:
		write(t, path, b.text)
	case b.is("sh", "run"):
		d.run(t, b)
	case b.is("sh", "origin"):
		d.origin(t, b)
	case b.is("sh", "serve"):
		d.serve(t, b)
	case b.is("text", "output"):
		if d.ran && withoutIDs(d.printed) != withoutIDs(b.text) {
			t.Errorf("%s: the block above prints\n%s", b.place, d.printed)
		}
	}
}

// withoutIDs replaces the id of each decision, which is new every time.
func withoutIDs(text string) string {
	return regexp.MustCompile(`\b01[0-9A-HJKMNP-TV-Z]{24}\b`).ReplaceAllString(text, "ID")
}

// replace replaces the addresses of one list by those of the other.
func (d *document) replace(text string, from, to []string) string {
	for i := range from {
		text = strings.ReplaceAll(text, from[i], to[i])
	}
	return text
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func parseYAML(t *testing.T, place string, text []byte) *strictyaml.Node {
	t.Helper()
	var errs strictyaml.Errors
	node := strictyaml.Parse(place, text, &errs)
	if err := errs.Err(); err != nil {
		t.Fatal(err)
	}
	return node
}

func loadPolicy(t *testing.T, place, path string) {
	t.Helper()
	opts := policyfile.Options{TrustDomain: spiffeid.RequireTrustDomainFromString("prod.example")}
	if _, err := policyfile.Load(opts, path); err != nil {
		t.Errorf("%s: %v", place, err)
	}
}

// run runs a shell block in a test of its own, which is skipped if a program is missing.
// A block that runs the program from its source is run in the root of the tree.
func (d *document) run(t *testing.T, b block) {
	t.Helper()
	d.ran, d.printed = false, ""
	t.Run(filepath.Base(b.place), func(t *testing.T) {
		b.demand(t)
		cmd := d.command(t, "sh", "-ec", d.replace(b.text, d.shown, d.used))
		if strings.Contains(b.text, "./cmd/exeat") {
			cmd.Dir, cmd.Env = "..", nil // uses the build cache
		}
		out, err := cmd.CombinedOutput()
		d.ran, d.printed = true, d.replace(string(out), d.used, d.shown)
		if err != nil {
			t.Errorf("%s: %v\n%s", b.place, err, d.printed)
		}
	})
}

// command prepares a program that does not see the settings of the user who tests.
func (d *document) command(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = d.dir
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	proxy := regexp.MustCompile(`(?i)^[a-z]+_proxy=`)
	for _, pair := range os.Environ() {
		if !proxy.MatchString(pair) {
			cmd.Env = append(cmd.Env, pair)
		}
	}
	if os.Getenv("RUSTUP_HOME") == "" { // where rustup's cargo finds its toolchain
		cmd.Env = append(cmd.Env, "RUSTUP_HOME="+filepath.Join(home, ".rustup"))
	}
	cmd.Env = append(cmd.Env, "HOME="+d.dir, "LC_ALL=C", "PATH="+d.bin+":"+os.Getenv("PATH"))
	return cmd
}

// serve starts the gateway of a block, and stops it when the document has ended.
func (d *document) serve(t *testing.T, b block) {
	t.Helper()
	b.demand(t)
	m := regexp.MustCompile(`^exeat serve --config (\S+)`).FindStringSubmatch(b.text)
	if m == nil {
		t.Fatalf("%s: the block does not begin with exeat serve --config FILE", b.place)
	}
	path := filepath.Join(d.dir, m[1])
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	shown := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindAllString(string(text), -1)
	for _, address := range shown {
		text = []byte(strings.Replace(string(text), address, "127.0.0.1:0", 1))
	}
	write(t, path, string(text))
	cmd := d.command(t, "sh", "-ec", "exec "+b.text)
	cmd.Cancel = nil // the process is killed when the test has ended
	p, err := site.Start(cmd, site.Ready{Announces: len(shown)})
	if err != nil {
		t.Fatalf("%s: %v", b.place, err)
	}
	t.Cleanup(p.Kill)
	d.shown, d.used = append(d.shown, shown...), append(d.used, p.Addresses...)
}

// origin starts the server of a block, which announces its port in its first line, and
// stops it when the document has ended. Where its program is missing, so is that of the
// blocks that reach it.
func (d *document) origin(t *testing.T, b block) {
	t.Helper()
	if b.lacks() != "" {
		return
	}
	port := regexp.MustCompile(`\b\d{4,5}\b`)
	shown := port.FindString(b.text)
	cmd := d.command(t, "sh", "-ec", "exec "+strings.Replace(b.text, shown, "0", 1))
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", b.place, err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	used := port.FindString(line)
	if used == "" {
		t.Fatalf("%s: the server announces no port: %q, %v", b.place, line, err)
	}
	d.shown, d.used = append(d.shown, shown), append(d.used, used)
}

// TestScriptedRecords checks that the records on which the recipes of the documents are
// tried are such as the gateway writes.
func TestScriptedRecords(t *testing.T) {
	data, err := os.ReadFile("testdata/records.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(strings.TrimSuffix(string(data), "\n"), "\n") {
		if _, err := native.Parse([]byte(line)); err != nil {
			t.Errorf("line %d: %v", i+1, err)
		}
	}
}
