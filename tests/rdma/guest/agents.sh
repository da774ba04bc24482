# Agents as people start them, on two devices on a wire; their calls go over the loopback interface.
# bound: 1200
here=$(dirname "$0")
for part in test net programs agents; do . "$here/lib/$part.sh"; done

in_guest && veth_pair

# agents_test NAME BOUND: runs the function of that name in a cluster of its own.
agents_test() {
  one_test "$1" "$2" bash -c "start_coordinator; $1; code=\$?; [ \$code = 0 ] || logs; stop_all; exit \$code"
}

two_agents() { agent a 1 --nics rxea "$@" && agent b 2 --nics rxeb "$@"; }

a_pull_takes_the_wire() {
  two_agents --transport rdma && put_file a 25165824 64KiB && get_file b && from "a over rdma"
}

auto_prefers_it_to_sockets() {
  two_agents && put_file a 8388608 64KiB && get_file b && from "a over rdma"
}

an_owner_that_is_killed_in_mid_transfer_is_replaced() {
  two_agents && agent c 3 --transport tcp && put_file a 50331648 256KiB && get_file c || return
  until_true 30 sh -c "$KVFERRY locate --manifest $work/file.kvf.json | grep -q c" || return
  in_mid_pull va kill -9 $pid_a &
  get_file b && grep -q "c over" $work/got && grep -v '"failed"' $work/got
}

without_checksums_a_software_device_is_left_to_those_with() {
  two_agents && checksum=off put_file a 8388608 64KiB && get_file b && from "a over tcp"
}

asked_for_without_checksums_it_says_what_to_set() {
  two_agents --transport rdma && checksum=sampled put_file a 4194304 64KiB || return
  get_file b && return 1
  grep "checksum policy .always" $work/got
}

with_the_link_down_the_pull_goes_on_over_tcp_and_later_ones_over_rdma_again() {
  two_agents && put_file a 50331648 256KiB || return
  in_mid_pull va ip link set va down &
  get_file b
  local code=$?
  [ $code = 0 ] && grep "a over tcp" $work/got && grep -q "falling back to another transport" $work/b.log
  code=$?
  veth_up
  [ $code = 0 ] && until_true 60 grep -q "reached by a better transport again" $work/b.log || return
  put_file a 8388608 256KiB && get_file b && from "a over rdma"
}

over_the_memlock_limit_tcp_serves_and_the_log_says_what_to_set() {
  user=65534 around="prlimit --memlock=8388608:8388608 setpriv --reuid=65534 --clear-groups --inh-caps=-all --bounding-set=-all" \
    agent a 1 --nics rxea && agent b 2 --nics rxeb || return
  put_file a 8388608 64KiB && get_file b || return
  grep -q "RLIMIT_MEMLOCK" $work/a.log && grep -q "LimitMEMLOCK=infinity" $work/a.log && grep -q "served by TCP" $work/a.log \
    && grep -q "not all can be read by RDMA" $work/b.log
}

without_dev_infiniband_tcp_is_used_and_the_log_says_why() {
  around="$here/lib/no_infiniband.sh" agent a 1 && agent b 2 && put_file a 4194304 64KiB && get_file b && from "a over tcp" \
    && grep -q "no RDMA: .*dev/infiniband" $work/a.log
}

asked_for_and_absent_it_does_not_start() {
  "$KVFERRY" agent --node x --transport rdma --nics none0 --socket $work/x.sock > $work/x.log 2>&1 && return 1
  grep -q "none0" $work/x.log
}

ticks() { awk '{print $14 + $15}' "/proc/$1/stat"; }

an_idle_agent_with_live_queue_pairs_uses_no_processor() {
  export KVFERRY_LOG=info
  two_agents --transport rdma && put_file a 4194304 64KiB && get_file b && from "a over rdma" || return
  agent c 3 --transport tcp || return
  sleep 3
  local a b c
  a=$(ticks $pid_a) b=$(ticks $pid_b) c=$(ticks $pid_c)
  sleep 20
  a=$(($(ticks $pid_a) - a)) b=$(($(ticks $pid_b) - b)) c=$(($(ticks $pid_c) - c))
  # 100 ticks are a second.
  awk "BEGIN {printf \"idle agents: owner %.2f %% of a core, reader %.2f %%; one without RDMA %.2f %%\n\", $a / 20, $b / 20, $c / 20}" | tee /dev/shm/idle
  # What counts is what RDMA adds: a thread that polls takes all of a core. Not less than this, since under emulation even an agent
  # without RDMA takes more than the one per cent, and what others take of the host counts as theirs who are let run.
  [ $((a - c)) -le 200 ] && [ $((b - c)) -le 200 ]
}

export here
export -f two_agents ticks a_pull_takes_the_wire auto_prefers_it_to_sockets an_owner_that_is_killed_in_mid_transfer_is_replaced \
  without_checksums_a_software_device_is_left_to_those_with asked_for_without_checksums_it_says_what_to_set \
  with_the_link_down_the_pull_goes_on_over_tcp_and_later_ones_over_rdma_again over_the_memlock_limit_tcp_serves_and_the_log_says_what_to_set \
  without_dev_infiniband_tcp_is_used_and_the_log_says_why asked_for_and_absent_it_does_not_start \
  an_idle_agent_with_live_queue_pairs_uses_no_processor
agents_test a_pull_takes_the_wire 180
agents_test auto_prefers_it_to_sockets 180
agents_test an_owner_that_is_killed_in_mid_transfer_is_replaced 180
agents_test without_checksums_a_software_device_is_left_to_those_with 180
agents_test asked_for_without_checksums_it_says_what_to_set 180
agents_test with_the_link_down_the_pull_goes_on_over_tcp_and_later_ones_over_rdma_again 240
in_guest && veth_up
agents_test over_the_memlock_limit_tcp_serves_and_the_log_says_what_to_set 180
agents_test without_dev_infiniband_tcp_is_used_and_the_log_says_why 180
agents_test asked_for_and_absent_it_does_not_start 60
agents_test an_idle_agent_with_live_queue_pairs_uses_no_processor 180
in_guest && [ -e /dev/shm/idle ] && note "$(cat /dev/shm/idle)"
exit 0
