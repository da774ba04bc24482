# Agents with two devices each, on two wires.
# bound: 800
here=$(dirname "$0")
for part in test net second_pair programs agents; do . "$here/lib/$part.sh"; done

in_guest && veth_pair && second_pair

# sent DEVICE: bytes its interface has sent.
sent() { cat "/sys/class/net/$1/statistics/tx_bytes"; }

both_devices_carry_a_pull() {
  agent a 1 --transport rdma --nics rxea,rxec && agent b 2 --transport rdma --nics rxeb,rxed && put_file a 25165824 64KiB || return
  local va vc
  va=$(sent va) vc=$(sent vc)
  get_file b && from "a over rdma" || return
  va=$(($(sent va) - va)) vc=$(($(sent vc) - vc))
  echo "bytes sent by the owner's two: $va $vc"
  [ $va -gt 5000000 ] && [ $vc -gt 5000000 ]
}

one_device_goes_down_and_the_other_ends_the_pull() {
  agent a 1 --transport rdma --nics rxea,rxec && agent b 2 --transport rdma --nics rxeb,rxed && put_file a 50331648 256KiB || return
  in_mid_pull va ip link set "$down" down &
  get_file b && from "a over rdma"
}

both_go_down_and_tcp_ends_the_pull() {
  agent a 1 --nics rxea,rxec && agent b 2 --nics rxeb,rxed && put_file a 50331648 256KiB || return
  (in_mid_pull va ip link set va down; in_mid_pull vc ip link set vc down) &
  get_file b
  local code=$?
  ip link show va | grep -q DOWN && ip link show vc | grep -q DOWN || code=1
  veth_up
  second_pair_up
  [ $code = 0 ] && grep "a over tcp" $work/got && until_true 60 grep -q "reached by a better transport again" $work/b.log
}

export -f both_go_down_and_tcp_ends_the_pull sent both_devices_carry_a_pull one_device_goes_down_and_the_other_ends_the_pull
two_nics_test() {
  one_test "$1" 240 bash -c "down=$3; start_coordinator; $2; code=\$?; [ \$code = 0 ] || logs; stop_all; exit \$code"
}
two_nics_test both_devices_carry_a_pull both_devices_carry_a_pull
two_nics_test the_owners_device_goes_down one_device_goes_down_and_the_other_ends_the_pull va
in_guest && veth_up && sleep 1
two_nics_test the_readers_device_goes_down one_device_goes_down_and_the_other_ends_the_pull vb
in_guest && veth_up && sleep 1
two_nics_test both_go_down_and_tcp_ends_the_pull both_go_down_and_tcp_ends_the_pull
exit 0
