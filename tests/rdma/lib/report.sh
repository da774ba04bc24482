# What is printed, and the exit status. Sourced by ../run.

begin() {
  started=$SECONDS passed=0 failed=0 skipped=0
  logs=$(mktemp -d "${TMPDIR:-/tmp}/kvferry-rdma.XXXXXX")
}

say() { printf '%s\n' "$*"; }

# Ends the run where this machine cannot do it: $why says so.
cannot_run() {
  rm -rf "$logs"
  if [ -n "${KVFERRY_RDMA_REQUIRED:-}" ]; then
    say "rdma: FAILED: $why"
    exit 1
  fi
  say "rdma: skipped all tests on real verbs: $why"
  exit 0
}

give_up() {
  say "rdma: FAILED: $1"
  exit 1
}

# result STATUS GUEST/NAME SECONDS [DETAIL]
result() {
  local log=$logs/${2//\//.}.log detail=${4:+: $4}
  case $1 in
    pass) passed=$((passed + 1)) ;;
    skip) skipped=$((skipped + 1)) ;;
    *) failed=$((failed + 1)) ;;
  esac
  printf 'rdma: %-4s %-92s %6ss%s\n' "$1" "$2" "$3" "$detail"
  if [ "$1" != pass ] && [ "$1" != skip ] && [ -s "$log" ]; then
    sed 's/^/    /' "$log" | tail -60
  fi
}

# A line from a guest for people: a figure.
note() { printf 'rdma:      %s\n' "$*"; }

finish() {
  local took=$((SECONDS - started))
  if [ $((passed + failed + skipped)) = 0 ]; then
    say "rdma: FAILED: no test is called *$filter*"
    failed=1
  fi
  if [ -n "$keep" ] || [ "$failed" -gt 0 ]; then
    say "rdma: logs are in $logs"
  else
    rm -rf "$logs"
  fi
  say "rdma: took $took s"
  say "$passed passed, $failed failed, $skipped skipped"
  [ "$failed" = 0 ]
  exit
}
