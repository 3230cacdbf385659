# make test is what a change must pass; make soak what a release must.
GO ?= go

.PHONY: all fmt lint test soak bench-queues
all: fmt lint test

fmt:
	gofmt -w .

lint:
	test -z "$$(gofmt -l .)" || { gofmt -l .; exit 1; }
	$(GO) mod tidy -diff
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

test: lint
	$(GO) test -race ./...

# Long runs: all of Go's own sources through the bus, many crashes and restarts (200 of a
# broker with a queue of each level), the
# fuzzers two minutes each and more (by their number of inputs: at the end of a time
# the fuzzer can report its own deadline as a failure).
soak:
	POSTBUS_FULL=1 POSTBUS_SOAK=1 $(GO) test -count=1 -timeout 60m ./cmd/postbus ./broker/... ./store/...
	$(GO) test -run '^$$' -fuzz FuzzDecode -fuzztime 1500000x -fuzzminimizetime 2s ./wire
	$(GO) test -run '^$$' -fuzz FuzzMatch -fuzztime 3000000x -fuzzminimizetime 2s ./wire

# Queues beside Redis and beanstalkd, which it installs (Debian, as root) if they are not
# there; nothing else needs them.
bench-queues:
	GO="$(GO)" cmd/postbus/internal/bench/queues.sh
