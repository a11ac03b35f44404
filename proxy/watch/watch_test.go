package watch

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/exeat-dev/exeat/e2e/missing"
)

// TestReplacedFileIsRead checks that a new content of dir/policy.yaml is found however
// the file is replaced, and that it is believed at once only after a rename.
func TestReplacedFileIsRead(t *testing.T) {
	for _, row := range []struct {
		name    string
		before  func(d disk) // prepares the directory; nil if dir/policy.yaml is a plain file
		replace func(d disk) // replaces the content "one" by "two"
		atOnce  bool         // the new content is believed without a second reading, because a rename put it in place
	}{
		{name: "a rename over the file", atOnce: true, replace: func(d disk) {
			d.put("dir/.policy.yaml.tmp", "two")
			d.rename("dir/.policy.yaml.tmp", "dir/policy.yaml")
		}},
		{name: "a rename from a directory that is not watched", replace: func(d disk) {
			d.put("else/where/x", "two")
			d.rename("else/where/x", "dir/policy.yaml")
		}},
		{name: "written in place", replace: func(d disk) {
			d.put("dir/policy.yaml", "two")
		}},
		{name: "removed and written again", replace: func(d disk) {
			d.remove("dir/policy.yaml")
			d.put("dir/policy.yaml", "two")
		}},
		{name: "an editor that renames a backup and writes", replace: func(d disk) {
			d.rename("dir/policy.yaml", "dir/policy.yaml~")
			d.put("dir/policy.yaml", "two")
		}},
		{name: "written after another file was moved away", replace: func(d disk) {
			d.put("dir/other", "")
			d.put("else/where/x", "")
			d.rename("dir/other", "else/where/other")
			d.put("dir/policy.yaml", "two")
		}},
		{name: "a hard link put in its place", replace: func(d disk) {
			d.put("else/x", "two")
			d.remove("dir/policy.yaml")
			d.hardLink("else/x", "dir/policy.yaml")
		}},
		{name: "its directory renamed away and another one put in its place", atOnce: true, replace: func(d disk) {
			d.put("next/policy.yaml", "two")
			d.rename("dir", "old")
			d.rename("next", "dir")
		}},
		{name: "its directory removed and made again", replace: func(d disk) {
			d.remove("dir")
			d.put("dir/policy.yaml", "two")
		}},
		{name: "the directory above replaced", atOnce: true, replace: func(d disk) {
			d.put("../next/dir/policy.yaml", "two")
			d.rename("", "../old")
			d.rename("../next", "")
		}},
		{name: "the swap of a ConfigMap", atOnce: true, before: configMap, replace: func(d disk) {
			d.put("dir/..2/policy.yaml", "two")
			d.link("..2", "dir/..data_tmp")
			d.rename("dir/..data_tmp", "dir/..data")
			d.remove("dir/..1")
		}},
		{name: "a symbolic link above that is swapped", atOnce: true, before: func(d disk) {
			d.rename("dir", "v1")
			d.link("v1", "dir")
		}, replace: func(d disk) {
			d.put("v2/policy.yaml", "two")
			d.link("v2", "dir.tmp")
			d.rename("dir.tmp", "dir")
		}},
		{name: "a symbolic link that is removed and made again", before: func(d disk) {
			d.rename("dir", "v1")
			d.link(d.root+"/v1", "dir")
		}, replace: func(d disk) {
			d.put("v2/policy.yaml", "two")
			d.remove("dir")
			d.link(d.root+"/v2", "dir")
		}},
		{name: "a rename over the target of a symbolic link", atOnce: true, before: func(d disk) {
			d.old("far/away/p", "one")
			d.remove("dir/policy.yaml")
			d.link("../far/away/p", "dir/policy.yaml")
		}, replace: func(d disk) {
			d.put("far/away/tmp", "two")
			d.rename("far/away/tmp", "far/away/p")
		}},
	} {
		for _, watched := range []string{"the file", "its directory", "a relative path"} {
			t.Run(row.name+"/"+watched, func(t *testing.T) {
				if watched != "a relative path" {
					t.Parallel()
				}
				replaced := func() (r *reader, root string, atOnce bool) {
					root = filepath.Join(t.TempDir(), "root")
					file := root + "/dir/policy.yaml"
					old(t, file, "one")
					if row.before != nil {
						row.before(disk{t, root})
					}
					path := map[string]string{"the file": file, "its directory": root + "/dir", "a relative path": "dir/policy.yaml"}[watched]
					if watched == "a relative path" {
						t.Chdir(root)
					}
					r = follow(t, file, isYAML, path)
					row.replace(disk{t, root})
					return r, root, r.believes(t, "two").complete
				}
				r, root, atOnce := replaced()
				for range 10 { // on a busy machine the steps of replace may be further apart than the quiet time
					if atOnce || !row.atOnce {
						break
					}
					r, root, atOnce = replaced()
				}
				if atOnce != row.atOnce {
					t.Errorf("believed at once: %v, want %v", atOnce, row.atOnce)
				}
				r.quietly(t)
				// The new file is watched, too.
				put(t, root+"/dir/policy.yaml", "three")
				r.believes(t, "three")
			})
		}
	}
}

// configMap lays the file out as Kubernetes mounts a ConfigMap.
func configMap(d disk) {
	d.old("dir/..1/policy.yaml", "one")
	d.link("..1", "dir/..data")
	d.remove("dir/policy.yaml")
	d.link("..data/policy.yaml", "dir/policy.yaml")
}

// TestAFileThatIsDeletedIsReadOnce checks that a deleted file is read once, and again
// when it is back.
func TestAFileThatIsDeletedIsReadOnce(t *testing.T) {
	root := t.TempDir()
	old(t, root+"/policy.yaml", "one")
	r := follow(t, root+"/policy.yaml", nil, root+"/policy.yaml")
	remove(t, root+"/policy.yaml")
	r.believes(t, "error")
	r.quietly(t)
	put(t, root+"/policy.yaml", "two")
	r.believes(t, "two")
}

// TestAPathThatComesLater checks that a file is read which is created, together with the
// directories above it, after the watcher has begun.
func TestAPathThatComesLater(t *testing.T) {
	root := t.TempDir()
	r := follow(t, root+"/a/b/policy.yaml", nil, root+"/a/b/policy.yaml")
	put(t, root+"/a/b/policy.yaml", "two")
	r.believes(t, "two")
}

// TestFileThatGrowsIsBelievedWhenComplete appends to a file after each reading of it,
// and checks that no content before the last is believed.
func TestFileThatGrowsIsBelievedWhenComplete(t *testing.T) {
	root := t.TempDir()
	path := root + "/policy.yaml"
	old(t, path, "one")
	r := follow(t, path, isYAML, root)
	put(t, path, "2")
	for i := range 8 {
		l := r.next(t)
		if l.done {
			t.Fatalf("believed %q after %d chunks", l.text, i)
		}
		add(t, path, fmt.Sprint(i))
		close(l.goOn)
	}
	r.believes(t, "201234567")
	r.quietly(t)
}

// TestTriggerDoesNotHastenTheConfirmation checks that the reading which confirms another
// one takes place after the quiet time, even if Trigger asks for it at once.
func TestTriggerDoesNotHastenTheConfirmation(t *testing.T) {
	root := t.TempDir()
	path := root + "/policy.yaml"
	old(t, path, "one")
	r := follow(t, path, isYAML, root)
	put(t, path, "tw")
	l := r.next(t)
	if l.done {
		t.Fatalf("believed %q", l.text)
	}
	r.Trigger()
	asked := time.Now()
	close(l.goOn)
	l = r.next(t)
	if after := time.Since(asked); after < quiet {
		t.Errorf("read again after %s", after)
	}
	close(l.goOn)
}

// TestRenamedFileIsNotYoung checks that a file which was written lately counts as young,
// unless the file or a name on its path was renamed. A rename of another file does not
// count.
func TestRenamedFileIsNotYoung(t *testing.T) {
	root := t.TempDir()
	put(t, root+"/new/a.yaml", "")
	disk{t, root}.link("new/a.yaml", "a.yaml")
	old(t, root+"/b.yaml", "")
	fs, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = fs.Close() }()
	tr := &tree{fs: fs, paths: []string{root}, inside: isYAML}
	tr.walk()
	for _, row := range []struct {
		name    string
		renamed string
		within  time.Duration
		want    bool
	}{
		{"a file was written within the time", "/none", time.Minute, true},
		{"no file was written within the time", "/none", time.Nanosecond, false},
		{"another file was renamed", "/b.yaml", time.Minute, true},
		{"the link to the file was renamed", "/a.yaml", time.Minute, false},
		{"the directory of the file was renamed", "/new", time.Minute, false},
		{"the file itself was renamed", "/new/a.yaml", time.Minute, false},
	} {
		if got := tr.recentlyWritten(row.within, map[string]bool{root + row.renamed: true}); got != row.want {
			t.Errorf("%s: %v, want %v", row.name, got, row.want)
		}
	}
}

// TestEventsDoNotPutOffAReadingForEver checks that the files are read when events have
// come without a pause for mostEvents quiet times.
func TestEventsDoNotPutOffAReadingForEver(t *testing.T) {
	w := &Watcher{
		cfg: Config{quiet: time.Hour}, timer: time.NewTimer(time.Hour),
		armed: true, armedAt: time.Now().Add(-mostEvents * time.Hour),
	}
	w.wait()
	select {
	case <-w.timer.C:
	case <-time.After(patience):
		t.Error("a reading is put off for ever")
	}
}

// needLeases skips a test if the file system has no leases.
func needLeases(t *testing.T, leases bool) {
	t.Helper()
	if !leases {
		missing.Skip(t, "this file system has no leases (fcntl F_SETLEASE), which tell who writes")
	}
}

// TestFileIsNotReadWhileOpenForWriting checks that a file which stays open for writing
// is reported, and is read when its writer closes it.
func TestFileIsNotReadWhileOpenForWriting(t *testing.T) {
	needLeases(t, leases(t))
	root := t.TempDir()
	path := root + "/policy.yaml"
	old(t, path, "one")
	r := follow(t, path, isYAML, root)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("tw"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-r.failures:
		if !strings.Contains(err.Error(), path+" is open for writing") {
			t.Errorf("told of %v", err)
		}
	case l := <-r.looks:
		t.Fatalf("read %q while it was written", l.text)
	}
	if _, err := f.WriteString("o"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r.believes(t, "two")
}

// TestFileRenamedBeforeItsLastWrite checks that a file which is renamed into place while
// it is open for writing is read when its writer closes it.
func TestFileRenamedBeforeItsLastWrite(t *testing.T) {
	root := t.TempDir()
	path := root + "/policy.yaml"
	old(t, path, "one")
	r := follow(t, path, isYAML, root)
	f, err := os.Create(root + "/.tmp")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("tw"); err != nil {
		t.Fatal(err)
	}
	needLeases(t, openForWriting(root+"/.tmp"))
	rename(t, root+"/.tmp", path)
	<-r.failures
	if _, err := f.WriteString("o"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r.believes(t, "two")
}

// TestCreatedFileIsNotTakenForARename checks that no file name makes the event of a
// created file look like that of a rename.
func TestCreatedFileIsNotTakenForARename(t *testing.T) {
	for _, row := range []struct {
		name string
		want bool
	}{
		{"a file that is created", false},
		{`a name " ← " that says it is renamed`, false},
		{`a name" ← "b`, false},
	} {
		if got := isRename(fsnotify.Event{Name: "/x/" + row.name, Op: fsnotify.Create}); got != row.want {
			t.Errorf("%s: %v", row.name, got)
		}
	}
}

// TestUnwatchableDirectoryIsReportedOnce checks that a directory without read permission
// is reported once.
func TestUnwatchableDirectoryIsReportedOnce(t *testing.T) {
	if os.Getuid() == 0 {
		asNobody(t)
		return
	}
	root := t.TempDir()
	if err := os.MkdirAll(root+"/shut", 0o300); err != nil {
		t.Fatal(err)
	}
	r := follow(t, root+"/shut/policy.yaml", nil, root+"/shut/policy.yaml")
	r.quietly(t)
	if err := <-r.failures; !errors.Is(err, os.ErrPermission) {
		t.Errorf("told of %v", err)
	}
	if len(r.failures) > 0 {
		t.Errorf("told again: %v", <-r.failures)
	}
}

// asNobody runs the test again in a process of another user, because root may read every
// directory.
func asNobody(t *testing.T) {
	t.Helper()
	const nobody = 65534
	// Other users cannot open the directory of the binary, but may follow this link.
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.v", "-test.count=1", "-test.run=^"+t.Name()+"$")
	cmd.Env = []string{"TMPDIR=/tmp"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL) {
		missing.Skip(t, "this root may not become another user, and nothing is forbidden to it: "+err.Error())
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()+" ") {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
}

func TestNewRequiresChanged(t *testing.T) {
	if _, err := New(Config{Paths: []string{"."}}); err == nil {
		t.Error("no error without Changed")
	}
}
