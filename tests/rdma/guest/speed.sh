# ffi/ibverbs beside ib_read_bw, on one device, in the same guest.
# bound: 300
here=$(dirname "$0")
. "$here/lib/test.sh"
. "$here/lib/net.sh"

export KVFERRY_RDMA_REQUIRED=1
in_guest && one_device

# reference BYTES: MiB/s of ib_read_bw. -n as many READs as our own measurement has.
reference() {
  local reads=$((3 * (24 << 20) / $1))
  ib_read_bw -d rxe0 -x 1 -s "$1" -n $reads -t 128 -F > /dev/shm/server.log 2>&1 &
  local server=$!
  sleep 1
  timeout 60 ib_read_bw -d rxe0 -x 1 -s "$1" -n $reads -t 128 -F 127.0.0.1 > /dev/shm/client.log 2>&1
  wait $server
  cat /dev/shm/client.log >&2
  awk -v bytes="$1" '$1 == bytes {print $4}' /dev/shm/client.log
}

compare() {
  local size mib way theirs before after
  declare -A ours
  for size in 65536 1048576; do before[$size]=$(reference $size); done
  "$VERBS_TEST" --ignored --exact speed::throughput --nocapture --test-threads=1 > /dev/shm/ours.log 2>&1 || {
    cat /dev/shm/ours.log
    return 1
  }
  cat /dev/shm/ours.log
  for size in 65536 1048576; do after[$size]=$(reference $size); done
  grep -oE 'figure .*' /dev/shm/ours.log | while read -r _ size mib way; do
    theirs=$(awk "BEGIN {print (${before[$size]:-0} + ${after[$size]:-0}) / 2}")
    awk "BEGIN {printf \"READ of %7d bytes, %s: %.1f MiB/s; ib_read_bw %.1f MiB/s; ratio %.2f\\n\", \
      $size, \"$way\", $mib, $theirs, $theirs ? $mib / $theirs : 0}"
  done > /dev/shm/figures
  [ -s /dev/shm/figures ]
}
export -f compare reference
one_test throughput_beside_ib_read_bw 240 bash -c compare
[ -e /dev/shm/figures ] && while read -r line; do note "$line"; done < /dev/shm/figures
exit 0
