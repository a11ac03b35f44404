//go:build !linux

package agent

import "syscall"

// limitUnacknowledged does nothing where there is no TCP_USER_TIMEOUT.
func limitUnacknowledged(_, _ string, _ syscall.RawConn) error { return nil }
