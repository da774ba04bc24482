# ffi/ibverbs beside ib_read_bw, on one device, in the same guest: the best of several rounds of each in turn, since the
# host has other things to do.
# bound: 300
here=$(dirname "$0")
. "$here/lib/test.sh"
. "$here/lib/net.sh"

export KVFERRY_RDMA_REQUIRED=1
in_guest && one_device

# Prints "theirs BYTES MIB_PER_S". As many READs as our own measurement has.
theirs() {
  local reads=$((3 * (24 << 20) / $1)) try
  ib_read_bw -d rxe0 -x 1 -s "$1" -n "$reads" -t 128 -F > /dev/null 2>&1 &
  for try in {1..50}; do
    ss -Hltn 'sport = :18515' | grep -q . && break
    sleep 0.1
  done
  timeout 60 ib_read_bw -d rxe0 -x 1 -s "$1" -n "$reads" -t 128 -F 127.0.0.1 2>&1 \
    | awk -v bytes="$1" '$1 == bytes {print "theirs", bytes, $4}'
  wait
}

compare() {
  local round size
  for round in 1 2 3; do
    for size in 65536 1048576; do theirs "$size"; done
    "$VERBS_TEST" --ignored --exact speed::throughput --nocapture --test-threads=1 || return 1
  done > /dev/shm/runs
  cat /dev/shm/runs
  awk '
    {sub(/.*figure /, "ours ")}
    $1 == "theirs" && $3 > theirs[$2] {theirs[$2] = $3}
    $1 == "ours" && $3 > ours[$2 " " $4] {ours[$2 " " $4] = $3}
    END {
      for (key in ours) {
        split(key, part, " ")
        if (!theirs[part[1]]) exit 1
        printf "READ of %7d bytes, %s: %.1f MiB/s; ib_read_bw %.1f MiB/s; ratio %.2f\n", \
          part[1], part[2], ours[key], theirs[part[1]], ours[key] / theirs[part[1]]
      }
    }' /dev/shm/runs | sort > /dev/shm/figures
  [ -s /dev/shm/figures ]
}
export -f compare theirs
one_test throughput_beside_ib_read_bw 240 bash -c compare
in_guest && [ -e /dev/shm/figures ] && while read -r line; do note "$line"; done < /dev/shm/figures
exit 0
