#!/bin/bash
# Regenerates src/bindings.rs. Needs libclang and the headers; on Debian:
#   apt-get install libclang1 libclang-common-14-dev libibverbs-dev
# INCLUDE=dir takes the headers of another rdma-core.
set -eu
here=$(dirname "$(readlink -f "$0")")
target=$(mktemp -d)
trap 'rm -rf "$target"' EXIT
cargo run --quiet --manifest-path "$here/regenerate/Cargo.toml" --target-dir "$target" -- \
  "${INCLUDE:-/usr/include}" "$here/src/bindings.rs"
