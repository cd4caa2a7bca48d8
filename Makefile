# Every chore is a verb of `cargo xtask`. These are the common ones by a short name.

# Where `make serve` listens, on 127.0.0.1.
PORT ?= 8000
# The device to serve on: auto, neuron, cuda, cpu; neuron-fake is the Neuron path without a device.
BACKEND ?= auto
# Further arguments: of `appliance serve` for `make serve`, of the bench for `make bench`.
ARGS ?=

.PHONY: help serve test bench

help: ## Lists what can be made
	@sed -n 's/^\([a-z]*\): ## /  make \1\t/p' $(MAKEFILE_LIST)

# `exec`, so that a SIGTERM to make reaches the server.
serve: ## Fetches the default model, builds and serves: make serve PORT=8000 ARGS='--max-queue 64'
	@exec cargo xtask serve --port $(PORT) --backend $(BACKEND) -- $(ARGS)

test: ## Runs every test
	@cargo xtask test

bench: ## Measures the server beside its peers, and what the Neuron path costs
	@cargo xtask bench $(ARGS)
