# Agents' pulls beside ib_read_bw: an engine asks, the coordinator is asked, blocks are read, validated, compared with their
# checksums, and sealed. Between the same two devices, in the same guest, in turn.
# bound: 960
# memory: 1536
# clock: instructions
here=$(dirname "$0")
for part in test net programs agents beside; do . "$here/lib/$part.sh"; done

export KVFERRY_LOG=info
in_guest && veth_pair

# Packets that the reader's device took for lost, so far.
retries() { cat /sys/class/infiniband/rxeb/ports/1/hw_counters/completer_retry_err; }

compare() {
  start_coordinator
  agent a 1 --transport rdma --nics rxea && agent b 2 --transport rdma --nics rxeb || return
  local round size number=0 code=0 before again=0
  for size in 65536 1048576; do
    for round in 1 2 3; do
      number=$((number + 1))
      theirs "$size" $((64 * (1 << 20) / size)) rxea rxeb
      before=$(retries)
      "$KVFERRY" bench pulls --transport rdma --owner $work/a/agent.sock --reader $work/b/agent.sock --block-bytes "$size" --number $number > /dev/shm/ours.log 2>&1 || {
        cat /dev/shm/ours.log >&2
        code=1
        break 2
      }
      sed -n 's/^figure /ours /p' /dev/shm/ours.log
      again=$((again + $(retries) - before))
      echo "of these pulls' READs $again were taken for lost" > /dev/shm/again
    done
  done > /dev/shm/runs
  cat /dev/shm/runs
  [ $code = 0 ] || logs
  stop_all
  [ $code = 0 ] && figures "agents' pull of blocks" < /dev/shm/runs
}
export -f compare retries
one_test pulls_beside_ib_read_bw 900 bash -c compare
in_guest && note_figures && note "$(cat /dev/shm/again)"
exit 0
