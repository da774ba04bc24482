# A device that goes away while it is in use. It does not come back, so this has a guest of its own.
# bound: 200
here=$(dirname "$0")
. "$here/lib/test.sh"
. "$here/lib/net.sh"

export KVFERRY_RDMA_REQUIRED=1 KVFERRY_RDMA_UNPLUG=1
in_guest && veth_pair
one_test a_device_that_is_removed_in_use_holds_nobody_up 150 \
  "$VERBS_TEST" --exact faults::a_device_that_is_removed_in_use_holds_nobody_up --nocapture
exit 0
