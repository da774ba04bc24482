# A coordinator and agents, as people start them. Sourced by guest scripts.

export KVFERRY_COORDINATOR=${KVFERRY_COORDINATOR:-http://127.0.0.1:7400} KVFERRY_LOG=info,kvferry_agent=debug
work=/dev/shm/agents

# until_true SECONDS COMMAND...
until_true() {
  local tries=$(($1 * 10))
  shift
  until "$@" > /dev/null 2>&1; do
    tries=$((tries - 1))
    [ $tries -gt 0 ] || { echo "never: $*"; return 1; }
    sleep 0.1
  done
}

# start_coordinator [FLAGS...]
start_coordinator() {
  rm -rf $work && mkdir -p $work && chmod 777 $work
  "$KVFERRY" coordinator "$@" > $work/coordinator.log 2>&1 &
  pids=$!
}

# agent NAME NUMBER FLAGS...: in a mount namespace of its own it is, for shared memory, on a host of its own.
# $around is put before the command, which then runs as $user. It listens at $host.
agent() {
  local name=$1 number=$2
  shift 2
  mkdir -p "$work/$name" && chown "${user:-0}" "$work/$name"
  # shellcheck disable=SC2086 # words
  unshare -m --propagation private ${around:-} "$KVFERRY" agent --node "$name" --socket "$work/$name/agent.sock" \
    --listen-peer "${host:-127.0.0.1}:74${number}1" --listen-data "${host:-127.0.0.1}:74${number}2" --listen-metrics off --pool-bytes 64MiB "$@" \
    > "$work/$name.log" 2>&1 &
  pids="$pids $!"
  eval "pid_$name=$!"
  until_true 60 test -S "$work/$name/agent.sock" || { cat "$work/$name.log"; return 1; }
}

stop_all() {
  # shellcheck disable=SC2086 # words
  kill -9 $pids 2> /dev/null
  wait 2> /dev/null
}

# put_file NAME BYTES BLOCK: a file of noise, published by an agent, with checksums: without, software devices are left alone.
put_file() {
  head -c "$2" /dev/urandom > $work/file
  "$KVFERRY" namespaces create test/rdma --dtype u8 --tokens-per-block 1 --planes 1 --plane-bytes "$3" \
    --checksum "${checksum:-always}" > /dev/null || return
  "$KVFERRY" put $work/file --namespace test/rdma --block-bytes "$3" --socket "$work/$1/agent.sock" --wait-ms 60000
}

# get_file NAME [FLAGS...]: pulls it to another agent and compares every byte; $work/got says where from.
get_file() {
  local name=$1
  shift
  "$KVFERRY" get $work/file.kvf.json -o $work/copy --json --timeout-ms 60000 --socket "$work/$name/agent.sock" "$@" > $work/got || {
    cat $work/got
    return 1
  }
  cmp $work/file $work/copy && rm $work/copy && grep over $work/got
}

# from WORDS: every block came this way.
from() { [ "$(grep -c ' over ' $work/got)" = 1 ] && grep -q "\"$1\"" $work/got; }

# in_mid_pull DEVICE COMMAND...: runs the command when that interface has sent so much that a pull is under way, and far from its
# end: one of 48 MiB. For the background.
in_mid_pull() {
  local counter=/sys/class/net/$1/statistics/tx_bytes before sent tries=2000
  shift
  read -r before < "$counter"
  while read -r sent < "$counter" && [ $((sent - before)) -lt 4000000 ]; do
    tries=$((tries - 1))
    [ $tries -gt 0 ] || return
    sleep 0.01
  done
  "$@"
}

logs() { tail -n 40 $work/*.log; }
export -f until_true start_coordinator agent stop_all put_file get_file from in_mid_pull logs
export work
