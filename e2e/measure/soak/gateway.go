package soak

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/e2e/site"
)

// gateway is a running exeat.
type gateway struct {
	*site.Process

	address, metrics string
}

// usage is the resources that a gateway uses.
type usage struct {
	goroutines, descriptors, tunnels int
	heap                             int64 // bytes that are reachable or not yet collected
	collections                      int
	displaced                        int // connections that were closed for want of a slot
}

// usage reads the usage from the gateway's metrics.
func (g *gateway) usage(ctx context.Context) (usage, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.metrics, nil)
	if err != nil {
		return usage{}, err
	}
	// A connection that is kept open would be one of the descriptors.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return usage{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	values, displaced := map[string]float64{}, 0.0
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		name, text, _ := strings.Cut(lines.Text(), " ")
		if value, err := strconv.ParseFloat(text, 64); err == nil {
			values[name] = value
			if strings.HasPrefix(name, "egress_connections_cut_total{") {
				displaced += value
			}
		}
	}
	for _, name := range []string{"go_goroutines", "process_open_fds", "go_memstats_heap_alloc_bytes", "go_gc_duration_seconds_count"} {
		if _, ok := values[name]; !ok {
			return usage{}, fmt.Errorf("the metrics have no %s", name)
		}
	}
	return usage{
		goroutines: int(values["go_goroutines"]), descriptors: int(values["process_open_fds"]), tunnels: int(values["egress_tunnels_active"]),
		displaced: int(displaced),
		heap:      int64(values["go_memstats_heap_alloc_bytes"]), collections: int(values["go_gc_duration_seconds_count"]),
	}, nil
}

// leastUsage makes light requests until the gateway has collected its garbage three
// times, for at most 30 s. It returns the least of each figure meanwhile.
func (g *gateway) leastUsage(ctx context.Context, quiet *caller) (usage, error) {
	first, err := g.usage(ctx)
	if err != nil {
		return usage{}, err
	}
	least := first
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end) && ctx.Err() == nil; {
		for range 50 {
			if err := quiet.light(ctx); err != nil {
				return usage{}, err
			}
		}
		now, err := g.usage(ctx)
		if err != nil {
			return usage{}, err
		}
		least.goroutines, least.descriptors = min(least.goroutines, now.goroutines), min(least.descriptors, now.descriptors)
		least.heap, least.tunnels = min(least.heap, now.heap), min(least.tunnels, now.tunnels)
		if now.collections >= first.collections+3 {
			return least, nil
		}
	}
	return least, context.Cause(ctx)
}

// watch reads the usage until ctx ends, and then sends the most of each figure.
func (g *gateway) watch(ctx context.Context) <-chan usage {
	watched := make(chan usage, 1)
	go func() {
		var most usage
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				watched <- most
				return
			case <-tick.C:
			}
			if now, err := g.usage(ctx); err == nil { // a busy gateway may not answer in time
				most.goroutines, most.descriptors = max(most.goroutines, now.goroutines), max(most.descriptors, now.descriptors)
				most.heap, most.tunnels = max(most.heap, now.heap), max(most.tunnels, now.tunnels)
			}
		}
	}()
	return watched
}
