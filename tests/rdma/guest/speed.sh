# ffi/ibverbs beside ib_read_bw, on one device, in the same guest. The host has other things to do, so the two are measured in turn,
# several times: the figures are the best of each, the ratio is the median of the rounds' ratios.
# bound: 700
here=$(dirname "$0")
for part in test net programs beside; do . "$here/lib/$part.sh"; done

export KVFERRY_RDMA_REQUIRED=1
in_guest && one_device

# Prints "ours BYTES MIB_PER_S WAY", for both ways.
ours() {
  "$READ_SPEED" "$1" > /dev/shm/ours.log 2>&1 || { cat /dev/shm/ours.log >&2; return 1; }
  sed -n 's/.*figure /ours /p' /dev/shm/ours.log
}

compare() {
  local round size
  for size in 65536 1048576; do
    for round in 1 2 3 4 5; do
      # As many READs as our own measurement has.
      theirs "$size" $((3 * (24 << 20) / size)) rxe0 rxe0
      ours "$size" || return 1
    done
  done > /dev/shm/runs
  cat /dev/shm/runs
  figures READ < /dev/shm/runs
}
export -f compare ours
one_test throughput_beside_ib_read_bw 600 bash -c compare
in_guest && note_figures
exit 0
