# ffi/ibverbs beside ib_read_bw, on one device, in the same guest. The host has other things to do, so the two are measured in turn,
# several times: the figures are the best of each, the ratio is the median of the rounds' ratios.
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

# Prints "ours BYTES MIB_PER_S WAY", for both ways.
ours() {
  KVFERRY_RDMA_SPEED_BYTES=$1 "$VERBS_TEST" --ignored --exact speed::throughput --nocapture --test-threads=1 \
    > /dev/shm/ours.log 2>&1 || { cat /dev/shm/ours.log >&2; return 1; }
  sed -n 's/.*figure /ours /p' /dev/shm/ours.log
}

compare() {
  local round size
  for size in 65536 1048576; do
    for round in 1 2 3 4 5; do
      theirs "$size"
      ours "$size" || return 1
    done
  done > /dev/shm/runs
  cat /dev/shm/runs
  awk '
    $1 == "theirs" {last = $3; if ($3 > best[$2]) best[$2] = $3}
    $1 == "ours" && last {
      key = $2 " " $4
      if ($3 > most[key]) most[key] = $3
      at = count[key]++
      for (value = $3 / last; at > 0 && ratio[key, at - 1] > value; at--) ratio[key, at] = ratio[key, at - 1]
      ratio[key, at] = value
    }
    END {
      for (key in most) {
        split(key, part, " ")
        n = count[key]
        printf "READ of %7d bytes, %s: %.1f MiB/s; ib_read_bw %.1f MiB/s; ratio %.2f (%.2f to %.2f)\n", part[1], part[2], \
          most[key], best[part[1]], ratio[key, int(n / 2)], ratio[key, 0], ratio[key, n - 1]
      }
    }' /dev/shm/runs | sort > /dev/shm/figures
  [ -s /dev/shm/figures ]
}
export -f compare theirs ours
one_test throughput_beside_ib_read_bw 240 bash -c compare
in_guest && [ -e /dev/shm/figures ] && while read -r line; do note "$line"; done < /dev/shm/figures
exit 0
