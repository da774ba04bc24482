# Builds what runs in the guest. Sourced by ../run.

# test_program PACKAGE TEST: cargo's own message says where the program is.
test_program() {
  cargo_for_guests test -p "$1" --test "$2" --no-run --message-format=json \
    | sed -n '/"kind":\["test"\]/s/.*"executable":"\([^"]*\)".*/\1/p' | tail -1
}

cargo_for_guests() {
  cargo "$1" --quiet --locked --release --manifest-path "$repo/Cargo.toml" "${@:2}" 2>> "$logs/build.log"
}

build_programs() {
  verbs_test=$(test_program kvferry-ibverbs verbs_on_hardware)
  # What only the verbs layers need is quickly built.
  [[ $filter == verbs/* && -x $verbs_test ]] && return 0
  local conformance e2e release
  conformance=$(test_program kvferry conformance)
  e2e=$(test_program kvferry e2e)
  release=$(dirname "$conformance")/..
  cargo_for_guests build -p kvferry-ibverbs --example read-speed
  # The guest sees this machine's files: lib/programs.sh there reads where these are.
  cat > "$here/guest/lib/.programs" << PROGRAMS
CONFORMANCE=$conformance
E2E=$e2e
KVFERRY=$release/kvferry
READ_SPEED=$release/examples/read-speed
PROGRAMS
  local program
  for program in "$verbs_test" "$conformance" "$e2e" "$release/kvferry" "$release/examples/read-speed"; do
    [ -x "$program" ] || { tail -30 "$logs/build.log"; return 1; }
  done
}
