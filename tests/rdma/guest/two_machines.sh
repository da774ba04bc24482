# Reads from one machine's memory into another's: two kernels, one wire.
# bound: 300
# machines: 2
here=$(dirname "$0")
. "$here/lib/test.sh"
. "$here/lib/net.sh"

export KVFERRY_RDMA_REQUIRED=1
in_guest && machine_on_wire "$ROLE"

# Serves memory to whoever connects to port 7500, until they hang up. Port 7501 opens when it is ready.
owner() {
  KVFERRY_RDMA_OWNER=1 busybox nc -l -p 7500 -e "$VERBS_TEST" --exact processes::owner_process --nocapture &
  local server=$! try
  for try in {1..50}; do
    ss -Hltn 'sport = :7500' | grep -q . && break
    sleep 0.1
  done
  busybox nc -l -p 7501 > /dev/null &
  wait $server
}

reader() {
  until (exec 3<> /dev/tcp/10.7.0.1/7501) 2> /dev/null; do sleep 0.2; done
  KVFERRY_RDMA_OWNER_COMMAND="busybox nc 10.7.0.1 7500" "$VERBS_TEST" --nocapture \
    --exact processes::an_owner_that_is_killed_is_noticed_and_what_came_before_is_right
}
export -f owner reader

if in_guest && [ "$ROLE" = 1 ]; then
  timeout 240 bash -c owner > /mnt/owner.log 2>&1 < /dev/null
else
  one_test an_owner_on_another_machine_is_read_until_it_goes 200 bash -c reader
fi
exit 0
