package enforce

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"time"

	"github.com/exeat-dev/exeat/e2e/site"
)

// recordTime bounds the wait for records. recordPoll is the interval of reads of the
// file.
const (
	recordTime = 20 * time.Second
	recordPoll = 10 * time.Millisecond
)

// began returns the time at which the event of a record began.
func began(r site.Record) time.Time {
	return r.Time.Add(-time.Duration(r.DurationMS * float64(time.Millisecond)))
}

// recordFile reads the records that are appended to a file.
type recordFile struct {
	path   string
	offset int64
}

// read returns the records that were written since the last call.
func (f *recordFile) read() ([]site.Record, error) {
	file, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	if _, err := file.Seek(f.offset, io.SeekStart); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(file)
	if err != nil {
		return nil, err
	}
	data = data[:bytes.LastIndexByte(data, '\n')+1]
	f.offset += int64(len(data))
	return site.ParseRecords(string(data))
}

// until returns the records that were written since the last call. It waits until enough
// reports true for them.
func (f *recordFile) until(ctx context.Context, what string, enough func(all []site.Record) bool) ([]site.Record, error) {
	var all []site.Record
	poll := time.NewTicker(recordPoll)
	defer poll.Stop()
	late := time.After(recordTime)
	for {
		more, err := f.read()
		if err != nil {
			return nil, err
		}
		if all = append(all, more...); enough(all) {
			return all, nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-late:
			return all, errors.New("no record of " + what)
		}
	}
}

// reloaded returns the record of the first state that came into force, or was enforced
// again, at a time or after it.
func reloaded(all []site.Record, since time.Time) (site.Record, bool) {
	for _, r := range all {
		if r.Event == "policy.reload" && !r.Time.Before(since) {
			return r, true
		}
	}
	return site.Record{}, false
}
