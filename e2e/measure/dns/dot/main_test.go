package main

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestAQueryIsFramed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "names.txt")
	if err := os.WriteFile(file, []byte("a.example A\nb.example A\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	queries, err := readQueries(file)
	if err != nil || len(queries) != 2 {
		t.Fatalf("%d queries, %v", len(queries), err)
	}
	for _, q := range queries {
		if got, want := int(q[0])<<8|int(q[1]), len(q)-2; got != want {
			t.Errorf("the length is %d, want %d", got, want)
		}
	}
}

func TestAnswersAreReadWhole(t *testing.T) {
	in := bufio.NewReader(bytes.NewReader([]byte{0, 6, 1, 2, 0x81, 0x83, 9, 9, 0, 4, 1, 3, 0x81, 0x80, 0, 3, 1, 2, 3, 4}))
	for _, want := range []byte{3, 0} {
		if got, err := readAnswer(in); err != nil || got != want {
			t.Errorf("got %d, %v, want %d", got, err, want)
		}
	}
	if _, err := readAnswer(in); err == nil {
		t.Error("an answer without a header has been read")
	}
}
