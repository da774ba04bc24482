# Runs tests and tells the host. Sourced by guest scripts.
#
# Each guest script is also run on the host, with LIST=1, to know whether the filter leaves it any test: there
# `one_test` only names its test. Whatever else a script does must stand behind `in_guest &&`.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TMPDIR=/dev/shm
guest=$(basename "$0" .sh)

in_guest() { [ -z "${LIST:-}" ]; }

now() { cut -d' ' -f1 /proc/uptime; }

wanted() { [[ $guest/$1 == *"${FILTER:-}"* ]]; }

# one_test NAME BOUND COMMAND...: exit status 0 is passed; a line that begins with "skipped:" makes it skipped.
one_test() {
  local name=$1 bound=$2 start status=pass code detail=
  shift 2
  wanted "$name" || return 0
  in_guest || { echo "$name"; return 0; }
  start=$(now)
  timeout -k 2 "$bound" "$@" > /dev/shm/test.log 2>&1 < /dev/null
  code=$?
  case $code in
    0) if grep -qE '(^|\.\.\. )skipped:' /dev/shm/test.log; then
        status=skip
        detail=$(grep -oE 'skipped: .*' /dev/shm/test.log | head -1)
      fi ;;
    124 | 137) status=FAIL detail="not over within $bound s" ;;
    *) status=FAIL detail="exit status $code" ;;
  esac
  cp /dev/shm/test.log "/mnt/$name.log"
  echo "@test $status $name $(awk "BEGIN {printf \"%.1f\", $(now) - $start}") $detail"
}

note() { echo "@note $*"; }
