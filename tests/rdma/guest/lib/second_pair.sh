# A second wire beside the one of net.sh: devices rxec (10.8.2.1) and rxed (10.8.2.2). Sourced by guest scripts.

second_pair() {
  local i
  ip link add vc type veth peer name vd
  for i in vc vd; do
    sysctl -qw "net.ipv4.conf.$i.accept_local=1" "net.ipv4.conf.$i.rp_filter=0" "net.ipv4.conf.$i.arp_ignore=1"
    ip rule add pref 5 iif $i lookup local
  done
  ip rule add pref 6 from 10.8.2.1 to 10.8.2.2 lookup 103
  ip rule add pref 6 from 10.8.2.2 to 10.8.2.1 lookup 104
  second_pair_up
  rdma link add rxec type rxe netdev vc
  rdma link add rxed type rxe netdev vd
  sleep 0.3
}

# As veth_up, for this pair.
second_pair_up() {
  ip link set vc mtu 9000 up
  ip link set vd mtu 9000 up
  ip addr replace 10.8.2.1/24 dev vc
  ip addr replace 10.8.2.2/24 dev vd
  ip route replace 10.8.2.0/24 dev vc src 10.8.2.1 table 103
  ip route replace 10.8.2.0/24 dev vd src 10.8.2.2 table 104
  ip neigh replace 10.8.2.2 lladdr "$(cat /sys/class/net/vd/address)" dev vc nud permanent
  ip neigh replace 10.8.2.1 lladdr "$(cat /sys/class/net/vc/address)" dev vd nud permanent
}
export -f second_pair_up
