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

// cpuTime reads the processor clock of a process, which counts nanoseconds:
// /proc/PID/stat counts hundredths of a second, too coarse for short runs.
func cpuTime(pid int) (time.Duration, error) {
	// clock_getcpuclockid(3): the complement of the id above three bits that
	// say which clock; 2 is what the scheduler counts.
	const scheduler = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduler), &ts); err != nil {
		return 0, err
	}
	return time.Duration(ts.Nano()), nil
}

// resident reads VmRSS.
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
	return 0, errors.New("it has ended")
}
