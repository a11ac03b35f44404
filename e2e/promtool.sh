#!/bin/sh
# Checks the Prometheus rules with the real promtool, and runs their unit tests.
# Go builds promtool from its pinned module when it is not in the build cache,
# which takes minutes once and then a second.
set -eu
cd "$(dirname "$0")/.."
rules=$PWD/configs/prometheus
promtool() { go -C e2e/promtool tool promtool "$@"; }
promtool check rules --lint=all --lint-fatal "$rules/exeat.rules.yaml"
promtool test rules "$rules/exeat.tests.yaml"
