# Where words come from when answers are late or lost.
# bound: 900
here=$(dirname "$0")
. "$here/lib/test.sh"
. "$here/lib/net.sh"
export KVFERRY_RDMA_REQUIRED=1 KVFERRY_RDMA_DEVICES=rxea,rxeb KVFERRY_RDMA_TRUTH_SECONDS=15
in_guest && veth_pair
t() { local n=$1; shift; one_test "$n" 90 "$@" "$VERBS_TEST" --exact truth::late_and_lost_answers_bring_each_word_from_its_address --nocapture --test-threads=1; }
for dev in va vb; do for limit in 2 8 30; do for delay in 1ms 20ms; do
in_guest && tc qdisc add dev $dev root netem delay $delay limit $limit
t $dev.limit$limit.$delay env
in_guest && tc qdisc del dev $dev root
done; done; done
in_guest && dmesg > /mnt/dmesg.txt
exit 0
