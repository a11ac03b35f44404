FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=unknown
RUN make build VERSION=$VERSION

# No shell, no package manager, no root. The roots are for OTLP over TLS only:
# tunnels are not opened by the gateway.
FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/bin/exeat /exeat
USER 65532:65532
ENTRYPOINT ["/exeat"]
CMD ["serve", "--config", "/etc/exeat/exeat.yaml"]
