//go:build !linux

package site

import (
	"errors"
	"time"
)

func cpuTime(int) (time.Duration, error) { return 0, errors.ErrUnsupported }

func resident(int) (int64, error) { return 0, errors.ErrUnsupported }
