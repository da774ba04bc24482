# Where the programs are that lib/build.sh on the host has built. Sourced by guest scripts.

. "$here/lib/.programs"
export CONFORMANCE E2E KVFERRY READ_SPEED
