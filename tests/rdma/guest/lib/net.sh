# Networks with Soft-RoCE on them. Sourced by guest scripts.

# One device, rxe0, on an interface that loops back.
one_device() {
  ip link add eth0 type dummy
  ip link set eth0 mtu 9000 up
  ip addr add 10.9.0.1/24 dev eth0
  rdma link add rxe0 type rxe netdev eth0
  sleep 0.3
}

# Two devices, rxea (10.8.1.1, fd08::1) and rxeb (10.8.1.2, fd08::2), on a veth pair in one namespace: network
# namespaces do not isolate rxe. Rules before the local table send packets between the two over the wire.
veth_pair() {
  local i f
  ip link add va type veth peer name vb
  for i in all va vb; do
    sysctl -qw "net.ipv4.conf.$i.accept_local=1" "net.ipv4.conf.$i.rp_filter=0" "net.ipv4.conf.$i.arp_ignore=1"
  done
  for f in -4 -6; do
    for i in va vb; do ip $f rule add pref 5 iif $i lookup local; done
  done
  ip rule add pref 6 from 10.8.1.1 to 10.8.1.2 lookup 101
  ip rule add pref 6 from 10.8.1.2 to 10.8.1.1 lookup 102
  ip -6 rule add pref 6 from fd08::1 to fd08::2 lookup 101
  ip -6 rule add pref 6 from fd08::2 to fd08::1 lookup 102
  for f in -4 -6; do
    ip $f rule add pref 10 lookup local
    ip $f rule del pref 0
  done
  veth_up
  rdma link add rxea type rxe netdev va
  rdma link add rxeb type rxe netdev vb
  sleep 0.3
}

# Also after an interface was down, which forgets its routes, neighbours and IPv6 addresses.
veth_up() {
  ip link set va mtu 9000 up
  ip link set vb mtu 9000 up
  ip addr replace 10.8.1.1/24 dev va
  ip addr replace 10.8.1.2/24 dev vb
  ip addr replace fd08::1/64 dev va nodad
  ip addr replace fd08::2/64 dev vb nodad
  ip route replace 10.8.1.0/24 dev va src 10.8.1.1 table 101
  ip route replace 10.8.1.0/24 dev vb src 10.8.1.2 table 102
  ip -6 route replace fd08::/64 dev va src fd08::1 table 101
  ip -6 route replace fd08::/64 dev vb src fd08::2 table 102
  local a b
  a=$(cat /sys/class/net/va/address)
  b=$(cat /sys/class/net/vb/address)
  ip neigh replace 10.8.1.2 lladdr "$b" dev va nud permanent
  ip neigh replace 10.8.1.1 lladdr "$a" dev vb nud permanent
  ip -6 neigh replace fd08::2 lladdr "$b" dev va nud permanent
  ip -6 neigh replace fd08::1 lladdr "$a" dev vb nud permanent
}

# One device, rxe0, on the wire to the other machine: 10.7.0.1 and 10.7.0.2.
machine_on_wire() {
  ip link set eth0 mtu 9000 up
  ip addr add "10.7.0.$1/24" dev eth0
  rdma link add rxe0 type rxe netdev eth0
  sleep 0.3
}
export -f veth_up
