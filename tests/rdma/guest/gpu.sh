# GPUs on both ends of a wire, on a fake libcuda: READs out of one GPU's memory straight into another's (GPUDirect).
# bound: 1500
here=$(dirname "$0")
for part in test net programs; do . "$here/lib/$part.sh"; done

export KVFERRY_RDMA_REQUIRED=1 KVFERRY_RDMA_DEVICES=rxea,rxeb
in_guest && veth_pair

# gpu_tests PROGRAM MODULE...: its tests; all but those that want none with a peer-memory module, as far as anybody can see.
gpu_tests() {
  local program=$1 module name around
  shift
  for module; do
    for name in $("$program" --list 2> /dev/null | sed -n "s/^\($module::.*\): test$/\1/p"); do
      case $name in
        *::without_dma_buf* | *::where_no_device_takes_it*) around= ;;
        *) around=$here/lib/peer_memory.sh ;;
      esac
      # shellcheck disable=SC2086 # words
      one_test "${name#rdma_gpu::}" 240 unshare -m --propagation private $around \
        "$program" --exact "$name" --nocapture --test-threads=1
    done
  done
}

gpu_tests "$CONFORMANCE" rdma_gpu
gpu_tests "$E2E" gpu_rdma
gpu_tests "$CONFORMANCE" over_rdma_between_gpus
exit 0
