# Builds what runs in the guest. Sourced by ../run.

# cargo's own message says where the program is: test_program PACKAGE TEST
test_program() {
  cargo test --quiet --locked --release -p "$1" --test "$2" --no-run --message-format=json \
    --manifest-path "$repo/Cargo.toml" 2> "$logs/build.log" \
    | sed -n '/"kind":\["test"\]/s/.*"executable":"\([^"]*\)".*/\1/p' | tail -1
}

build_programs() {
  verbs_test=$(test_program kvferry-ibverbs verbs_on_hardware)
  # What only the verbs layers need is quickly built.
  [[ $filter == verbs/* && -x $verbs_test ]] && return 0
  local conformance
  conformance=$(test_program kvferry conformance)
  # The guest sees this machine's files: lib/programs.sh there reads where these are.
  printf 'CONFORMANCE=%s\nKVFERRY=%s\n' "$conformance" "$(dirname "$conformance")/../kvferry" > "$here/guest/lib/.programs"
  [ -x "$verbs_test" ] && [ -x "$conformance" ] && return 0
  tail -30 "$logs/build.log"
  return 1
}
