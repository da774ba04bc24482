# The transports' conformance suite over RDMA: an owner on one device of a wire, a reader on the other.
# bound: 1200
here=$(dirname "$0")
. "$here/lib/test.sh"
. "$here/lib/net.sh"
. "$here/lib/programs.sh"

export KVFERRY_RDMA_REQUIRED=1 KVFERRY_RDMA_DEVICES=rxea,rxeb
in_guest && veth_pair

# suite_test NAME [PREFIX]: one test of the suite; PREFIX makes its line's name differ.
suite_test() {
  one_test "${2:-}${1##*::}" 240 "$CONFORMANCE" --exact "$1" --nocapture --test-threads=1
}

for name in $("$CONFORMANCE" --list 2> /dev/null | sed -n 's/^\(over_rdma::.*\|rdma::.*\): test$/\1/p'); do
  case $name in
    # These have guests of their own.
    *::with_the_link_down*) ;;
    *) suite_test "$name" ;;
  esac
done

# The same over IPv6: the index of that GID is the first of that family.
ipv6_index() {
  local place
  for place in /sys/class/infiniband/rxea/ports/1/gids/*; do
    grep -q '^fd08:' "$place" && basename "$place" && return
  done
}
in_guest && KVFERRY_RDMA_GID=$(ipv6_index) && export KVFERRY_RDMA_GID
suite_test over_rdma::differently_cut_spans_arrive_in_order ipv6.
suite_test over_rdma::concurrent_reads_do_not_mix ipv6.
unset KVFERRY_RDMA_GID

# One packet in a hundred is lost, both ways.
in_guest && tc qdisc add dev va root netem loss 1% && tc qdisc add dev vb root netem loss 1%
suite_test over_rdma::a_large_read_arrives one_percent_lost.
suite_test over_rdma::nothing_wrong_is_accepted_from_an_owner_that_overwrites one_percent_lost.
in_guest && tc qdisc del dev va root && tc qdisc del dev vb root
exit 0
