# Links that go down under reads that are under way.
# bound: 400
here=$(dirname "$0")
for part in test net programs; do . "$here/lib/$part.sh"; done

export KVFERRY_RDMA_REQUIRED=1 KVFERRY_RDMA_DEVICES=rxea,rxeb
in_guest && veth_pair
name=rdma::with_the_link_down_a_cancelled_read_settles_and_the_others_are_lost
for side in va:the_owners vb:the_readers; do
  export KVFERRY_RDMA_LINK=${side%%:*}
  one_test "${side##*:}.${name##*::}" 180 "$CONFORMANCE" --exact $name --nocapture
  in_guest && veth_up && sleep 1
done
exit 0
