package telemetry

import (
	"strconv"
	"strings"
)

// The values of OTEL_*_EXPORTER that are treated specially.
const (
	exporterNone       = "none"
	exporterOTLP       = "otlp"
	exporterPrometheus = "prometheus"
)

// wanted reports whether a variable asks for an exporter of a signal: TRACES, METRICS
// or LOGS. The Go SDK does not know OTEL_SDK_DISABLED, and for autoexport unset
// variables mean OTLP to localhost.
func wanted(getenv func(string) string, signal string) bool {
	if disabled(getenv) {
		return false
	}
	if exporter := getenv("OTEL_" + signal + "_EXPORTER"); exporter != "" {
		return exporter != exporterNone
	}
	return getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || getenv("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT") != ""
}

func disabled(getenv func(string) string) bool {
	return strings.EqualFold(getenv("OTEL_SDK_DISABLED"), "true")
}

// size reads a positive number that bounds a queue. Like the SDK it returns fallback
// for anything else. It bounds the number, so that a mistake cannot use up all memory.
func size(getenv func(string) string, key string, fallback int) int {
	const most = 1 << 20
	n, err := strconv.Atoi(getenv(key))
	if err != nil || n <= 0 {
		return fallback
	}
	return min(n, most)
}
