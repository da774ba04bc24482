# The transport's validated reads beside ib_read_bw: between the same two devices, in the same guest, the best of several
# rounds of each in turn.
# bound: 300
here=$(dirname "$0")
for part in test net programs; do . "$here/lib/$part.sh"; done

export KVFERRY_RDMA_REQUIRED=1 KVFERRY_RDMA_DEVICES=rxea,rxeb
in_guest && veth_pair

# Prints "theirs BYTES MIB_PER_S".
theirs() {
  local reads=$((72 * (1 << 20) / $1)) try
  ib_read_bw -d rxea -x 1 -s "$1" -n $reads -t 128 -F > /dev/null 2>&1 &
  for try in {1..50}; do
    ss -Hltn 'sport = :18515' | grep -q . && break
    sleep 0.1
  done
  timeout 60 ib_read_bw -d rxeb -x 1 -s "$1" -n $reads -t 128 -F 127.0.0.1 2>&1 \
    | awk -v bytes="$1" '$1 == bytes {print "theirs", bytes, $4}'
  wait
}

compare() {
  local round size
  for round in 1 2 3; do
    for size in 65536 1048576; do theirs $size; done
    "$CONFORMANCE" --ignored --exact rdma::speed_of_validated_reads --nocapture --test-threads=1 || return 1
  done > /dev/shm/runs
  cat /dev/shm/runs
  awk '
    {sub(/.*figure /, "ours ")}
    $1 == "theirs" && $3 > theirs[$2] {theirs[$2] = $3}
    $1 == "ours" && $3 > ours[$2] {ours[$2] = $3}
    END {
      for (size in ours) {
        if (!theirs[size]) exit 1
        printf "validated reads of %7d bytes: %.1f MiB/s; ib_read_bw %.1f MiB/s; ratio %.2f\n", \
          size, ours[size], theirs[size], ours[size] / theirs[size]
      }
    }' /dev/shm/runs | sort > /dev/shm/figures
  [ -s /dev/shm/figures ]
}
export -f compare theirs
one_test validated_reads_beside_ib_read_bw 240 bash -c compare
in_guest && [ -e /dev/shm/figures ] && while read -r line; do note "$line"; done < /dev/shm/figures
exit 0
