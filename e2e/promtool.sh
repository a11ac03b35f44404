#!/bin/sh
# Checks the Prometheus rules with the real promtool, and runs their unit tests.
# promtool is built once from its pinned module, which takes minutes.
set -eu
cd "$(dirname "$0")/.."
rules=$PWD/configs/prometheus
promtool=$(sh e2e/kept.sh e2e/promtool github.com/prometheus/prometheus/cmd/promtool)
"$promtool" check rules --lint=all --lint-fatal "$rules/exeat.rules.yaml"
"$promtool" test rules "$rules/exeat.tests.yaml"
