package site

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime reads the processor clock of a process, which counts nanoseconds.
// /proc/PID/stat counts hundredths of a second, which is too coarse for short runs.
func cpuTime(pid int) (time.Duration, error) {
	// clock_getcpuclockid(3): the ID of the clock is the complement of the process ID,
	// above three bits for the kind of clock; 2 is the scheduler's.
	const scheduler = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduler), &ts); err != nil {
		return 0, err
	}
	return time.Duration(ts.Nano()), nil
}

// resident reads VmRSS from /proc.
func resident(pid int) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(status) {
		value, found := bytes.CutPrefix(line, []byte("VmRSS:"))
		if !found {
			continue
		}
		kib, err := strconv.ParseInt(string(bytes.TrimSuffix(bytes.TrimSpace(value), []byte(" kB"))), 10, 64)
		return kib << 10, err
	}
	return 0, errors.New("the process has ended")
}
