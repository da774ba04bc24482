#!/bin/bash
# Builds libkvferry and installs header, libraries and pkg-config file:  install.sh PREFIX [FROM]
# FROM is a folder with a built libkvferry.so and libkvferry.a; without it a release is built.
set -eu
here=$(dirname "$(readlink -f "$0")")
prefix=${1:?usage: install.sh PREFIX [FROM]}
from=${2:-}
if [ -z "$from" ]; then
    cargo build --release --locked --package kvferry-capi --manifest-path "$here/../../Cargo.toml"
    from=${CARGO_TARGET_DIR:-$here/../../target}/release
fi
mkdir -p "$prefix/include" "$prefix/lib/pkgconfig"
prefix=$(readlink -f "$prefix")
install -m 644 "$here/include/kvferry.h" "$prefix/include/kvferry.h"
install -m 644 "$from/libkvferry.a" "$prefix/lib/libkvferry.a"
abi=$(sed -n 's/^#define KVF_ABI_VERSION //p' "$here/include/kvferry.h")
install -m 755 "$from/libkvferry.so" "$prefix/lib/libkvferry.so.$abi"
ln -sf "libkvferry.so.$abi" "$prefix/lib/libkvferry.so"
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$here/../../Cargo.toml")
sed "s|@prefix@|$prefix|; s|@version@|$version|" "$here/kvferry.pc.in" >"$prefix/lib/pkgconfig/kvferry.pc"
echo "libkvferry $version is in $prefix"
