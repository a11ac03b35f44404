// Command collector stands in for an OpenTelemetry collector: it accepts
// traces over OTLP/HTTP in protobuf and counts the spans.
//
//	POST /v1/traces   adds the spans of the request to the count
//	GET  /spans       returns the count, in decimal
//
// It stores no spans, and decodes none.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

func main() {
	ctx := context.Background()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		log.Error("listening", slog.Any("error", err))
		os.Exit(2)
	}
	log.Info("listening", slog.String("address", l.Addr().String()))
	server := &http.Server{Handler: newHandler(), ReadHeaderTimeout: 10 * time.Second}
	log.Error("serving", slog.Any("error", server.Serve(l)))
	os.Exit(2)
}

func newHandler() http.Handler {
	var spans atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/traces", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the exporter has gone
		}
		n, err := countSpans(body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		spans.Add(n)
		w.Header().Set("Content-Type", "application/x-protobuf") // the response is an empty message
	})
	mux.HandleFunc("GET /spans", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintln(w, spans.Load())
	})
	return mux
}
