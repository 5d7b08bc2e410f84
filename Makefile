# make prints the targets. `make check` is the inner loop, `make test` proves
# the product, from a fresh machine on.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CACHE   := $(or $(KILN_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/kiln)
TOOLS   := $(CACHE)/tools
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
# Packer wants a plugin's version to be three numbers: the last tag's.
PLUGIN_VERSION := $(or $(shell git describe --tags --abbrev=0 --match 'v[0-9]*.[0-9]*.[0-9]*' 2>/dev/null | sed -n 's/^v\([0-9]*\.[0-9]*\.[0-9]*\)$$/\1/p'),0.1.0)
FUZZ    ?= 10s

.PHONY: help image demo-netboot build generate setup hashicorp packages check lint unit test integration matrix matrix-netboot matrix-packer portable bench bench-image bench-netboot bench-packer fuzz clean

help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

image: ## bake alissandra for the example site, and boot it beside real servers (as root)
	@scripts/image.sh

demo-netboot: ## install a machine over the network, in a lab of its own, and show the dashboard (as root)
	@scripts/image.sh --netboot

build: ## build kiln, its installer and Packer's plugin into bin/
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS) -X main.pluginVersion=$(PLUGIN_VERSION)' -o bin/ ./cmd/...

generate: $(TOOLS)/.built ## write anew what is generated: the options of Packer's plugin for HCL
	PATH="$(TOOLS):$$PATH" go generate ./builder/packer

setup: ## install what the tests need: Debian packages (as root), linters, HashiCorp's programs
	@scripts/setup.sh packages
	@$(MAKE) --no-print-directory $(TOOLS)/.built hashicorp

hashicorp: ## build Nomad, Consul, Vault and Packer into the cache (20 minutes, once)
	@scripts/hashicorp/build.sh nomad consul packer packer-plugin-qemu packer-plugin-openstack vault

packages: ## make Debian packages of Nomad and Consul, in a signed apt repository
	@scripts/hashicorp/packages.sh

$(TOOLS)/.built: scripts/tools/go.mod scripts/tools/go.sum
	@echo "linters and nfpm: building them (once)"
	@mkdir -p $(TOOLS)
	@cd scripts/tools && GOBIN=$(TOOLS) go install -mod=readonly tool
	@touch $@

check: $(TOOLS)/.built lint unit ## format, vet, lint, unit tests: before each commit

lint: $(TOOLS)/.built
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
	  [ -z "$$unformatted" ] || { echo "not gofmt-ed: $$unformatted (gofmt -w mends it)"; exit 1; }
	go vet -tags "integration matrix" ./...
	$(TOOLS)/staticcheck -tags integration,matrix ./...
	$(TOOLS)/depguard ./...
	@scripts/setup.sh shellcheck
	@$(MAKE) --no-print-directory generated

.PHONY: generated
generated: $(TOOLS)/.built
	@before=$$(cat builder/packer/*.hcl2spec.go | sha256sum); $(MAKE) --no-print-directory -s generate; \
	  [ "$$before" = "$$(cat builder/packer/*.hcl2spec.go | sha256sum)" ] || { echo "builder/packer/*.hcl2spec.go were older than the options: make generate has written them anew; look at them, and commit them"; exit 1; }

unit:
	go test ./...

test: setup check portable integration ## everything that proves the product, real programs included

integration: ## the real programs judge (needs root, and make setup)
	@# -v, since it takes minutes: each test is named as it starts and ends.
	env -u AWS_CA_BUNDLE go test -v -tags integration -count=1 -timeout 80m ./internal/integration/... | \
	  grep --line-buffered -vE '^=== (RUN|PAUSE|CONT|NAME) +[^ ]+/|^ +--- PASS'

matrix: ## one image in all circumstances that mustn't matter: the same bytes (as root, half an hour)
	env -u AWS_CA_BUNDLE go test -v -tags 'integration matrix' -count=1 -timeout 80m -run TestSameBytes ./internal/integration/

matrix-netboot: ## a machine installed in each way there is: firmware, PXE or HTTP, DHCP, disk (as root, an hour)
	env -u AWS_CA_BUNDLE go test -v -tags "integration matrix" -count=1 -timeout 180m -run TestNetbootMatrix ./internal/integration/

matrix-packer: ## one image natively, by Packer in both ways, and by a first boot: the same but for one list (as root, half an hour)
	env -u AWS_CA_BUNDLE go test -v -tags "integration matrix" -count=1 -timeout 120m -run TestPackerMatrix ./internal/integration/

portable: ## what operators run on their laptops also builds for macOS and arm64
	GOOS=darwin GOARCH=arm64 CGO_ENABLED=0 go build -o /dev/null ./cmd/kiln
	GOOS=linux GOARCH=arm64 CGO_ENABLED=0 go build -o /dev/null ./cmd/kiln
	GOOS=darwin GOARCH=arm64 CGO_ENABLED=0 go build -o /dev/null ./cmd/packer-plugin-kiln
	GOOS=linux GOARCH=arm64 CGO_ENABLED=0 go build -o /dev/null ./cmd/kiln-installer

bench: ## print the speeds, as ratios where there is something to compare with
	go run ./internal/bench

bench-image: ## print how long builds take, beside mmdebstrap (as root, 15 minutes)
	@go run ./internal/bench/image -hashicorp "$$(scripts/hashicorp/packages.sh --output $(CACHE)/hashicorp/apt >/dev/null && echo $(CACHE)/hashicorp/apt)"

bench-netboot: build ## print how fast hosts boot from the network, beside pin/tftp and nginx (as root)
	@scripts/setup.sh netboot
	@go run ./internal/bench/netboot $(BENCH_NETBOOT)

bench-packer: ## print how long Packer takes natively, beside its qemu builder (as root, 15 minutes)
	@scripts/setup.sh packages
	@$(MAKE) --no-print-directory hashicorp
	@go run ./internal/bench/packer

fuzz: ## run each fuzz target for FUZZ=10s
	@scripts/fuzz.sh $(FUZZ)

clean: ## remove what was built here; the cache stays
	rm -rf bin out
