# docker build --build-arg VERSION=1.2.3 -t token-sidecar .

ARG GO_IMAGE=golang:1.26

# The compiler runs on the builder's own platform, whatever it builds for.
FROM --platform=$BUILDPLATFORM ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=dev
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags "-s -w -X main.version=$VERSION" -o /out/token-sidecar ./cmd/token-sidecar

# scratch rather than distroless: the program is static, writes no files, logs
# in UTC and needs no name for its user. Time zones and a passwd file would be
# things to scan and to update for nothing. CA certificates are all it lacks.
FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY LICENSE /
COPY --from=build /out/token-sidecar /
ARG VERSION=dev
LABEL org.opencontainers.image.title="token-sidecar" \
      org.opencontainers.image.description="Adds OAuth 2.0 bearer tokens to the requests of applications that cannot" \
      org.opencontainers.image.source="https://github.com/token-sidecar/token-sidecar" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION"
# Numeric, so that Kubernetes can see that it is not root (runAsNonRoot).
USER 65532:65532
EXPOSE 8080 9090
ENTRYPOINT ["/token-sidecar"]
