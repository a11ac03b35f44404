package telemetry

import (
	"fmt"
	"net/url"
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

// checkResourceAttributes returns an error if OTEL_RESOURCE_ATTRIBUTES cannot be read. It
// names the position of what is wrong and quotes nothing, because a value may be a
// secret. The errors of the SDK quote it.
func checkResourceAttributes(getenv func(string) string) error {
	const name = "OTEL_RESOURCE_ATTRIBUTES"
	text := strings.TrimSpace(getenv(name))
	if text == "" {
		return nil
	}
	for i, pair := range strings.Split(text, ",") {
		_, value, found := strings.Cut(pair, "=")
		if !found {
			return fmt.Errorf("%s: attribute %d has no \"=\"; write key=value,key=value, and a comma within a value as %%2C", name, i+1)
		}
		if _, err := url.PathUnescape(value); err != nil {
			return fmt.Errorf("%s: the value of attribute %d has a %% without two hexadecimal digits behind it; write %% as %%25", name, i+1)
		}
	}
	return nil
}
