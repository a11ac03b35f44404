//go:build !linux

package soak

import "syscall"

func latePort(_, _ string, _ syscall.RawConn) error { return nil }
