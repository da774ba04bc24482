#!/bin/bash
# Makes include/kvferry.h anew from the library's source. With --check it only says whether that is needed.
set -eu
here=$(dirname "$(readlink -f "$0")")
exec cargo run --quiet --locked --manifest-path "$here/regenerate/Cargo.toml" \
  --target-dir "${CARGO_TARGET_DIR:-$here/../../target}/header" -- "$@"
