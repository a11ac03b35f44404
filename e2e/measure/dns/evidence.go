package dns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// arrivalTime is how long records and spans may take to arrive.
const arrivalTime = 30 * time.Second

// counter compares the number of records or spans that exeat must have written with the
// number that has arrived. A nil counter, for a peer that writes none, counts nothing.
type counter struct {
	what   string
	before int64
	reset  func() error // removes what has arrived; nil if it stays
	read   func(ctx context.Context) (int64, error)
}

// begin notes how many have arrived before.
func (c *counter) begin(ctx context.Context) (err error) {
	if c == nil {
		return nil
	}
	if c.reset != nil {
		if err := c.reset(); err != nil {
			return err
		}
	}
	c.before, err = c.read(ctx)
	return err
}

// wait waits until n more have arrived, so that the processor time of writing them counts
// for the queries. More than n may arrive, because a client may stop before it has read
// every answer.
func (c *counter) wait(ctx context.Context, n int64) error {
	if c == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, arrivalTime)
	defer cancel()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		got, err := c.read(ctx)
		if err != nil {
			return err
		}
		if got >= c.before+n {
			return nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return fmt.Errorf("of %d %s %d are missing: %w", n, c.what, c.before+n-got, context.Cause(ctx))
		}
	}
}

// linesOf returns the number of lines in a file.
func linesOf(file string) (int64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }() // the file was only read
	var n int64
	buf := make([]byte, 1<<20)
	for {
		size, err := f.Read(buf)
		n += int64(bytes.Count(buf[:size], []byte("\n")))
		switch {
		case errors.Is(err, io.EOF):
			return n, nil
		case err != nil:
			return 0, err
		}
	}
}
