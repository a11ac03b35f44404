//go:build !linux

package listen

import "syscall"

const canShare = false

func reusePort(_, _ string, _ syscall.RawConn) error { return nil }
