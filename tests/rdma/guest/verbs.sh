# ffi/ibverbs on two Soft-RoCE devices on a wire.
# bound: 900
here=$(dirname "$0")
. "$here/lib/test.sh"
. "$here/lib/net.sh"

export KVFERRY_RDMA_REQUIRED=1 KVFERRY_RDMA_DEVICES=rxea,rxeb
in_guest && veth_pair

# rust_test NAME PREFIX COMMAND...: one test of the program; PREFIX makes its line's name differ.
rust_test() {
  local name=$1 prefix=$2
  shift 2
  one_test "$prefix${name//::/.}" 180 "$@" "$VERBS_TEST" --exact "$name" --nocapture --test-threads=1
}

for name in $("$VERBS_TEST" --list 2> /dev/null | sed -n 's/: test$//p'); do
  case $name in
    # The others of these have lines of their own.
    processes::owner_process | devices::missing_device_nodes* | faults::a_device_that_is_removed*) ;;
    events::*)
      KVFERRY_RDMA_LINK_DOWN=1 rust_test "$name" ""
      in_guest && veth_up
      ;;
    # As a service of a user without privileges: 8 MiB of locked memory, and no right to more.
    limits::a_registration_over_the_memlock*)
      rust_test "$name" "" prlimit --memlock=8388608:8388608 setpriv --reuid=65534 --clear-groups --inh-caps=-all
      ;;
    *) rust_test "$name" "" ;;
  esac
done

export KVFERRY_RDMA_GID=ipv6
rust_test reads::chains_with_scatter_lists_bring_every_byte ipv6.
rust_test faults::a_wrong_key_is_told_as_such_and_the_memory_is_free_afterwards ipv6.
unset KVFERRY_RDMA_GID

# Where there is no /dev/infiniband, the answer is a clear line.
in_guest && tc qdisc add dev vb root netem loss 1%
rust_test reads::chains_with_scatter_lists_bring_every_byte loss_of_1_percent.
rust_test reads::many_pairs_read_both_ways_at_once loss_of_1_percent.
compgen -G '/mnt/loss*.log' > /dev/null && note "packets lost on purpose: $(tc -s qdisc show dev vb | grep -oE 'dropped [0-9]+')"
in_guest && tc qdisc change dev vb root netem loss 100%
rust_test faults::closing_while_reads_are_under_way_settles_all_of_them loss_of_everything.
# The owner's queue is short: its device fails to send answers, and Soft-RoCE on Linux 6.1 then tells a READ as done
# that was not.
in_guest && tc qdisc change dev vb root netem delay 20ms limit 30 loss 0%
rust_test crowded_wire::what_is_told_as_read_has_been_read short_queue.
in_guest && tc qdisc del dev vb root

in_guest && mount -t tmpfs none /dev/infiniband
KVFERRY_RDMA_NO_NODES=1 rust_test devices::missing_device_nodes_are_told ""
in_guest && umount /dev/infiniband
exit 0
