# An agent on each of two machines, the coordinator on the first: two kernels, one wire.
# bound: 500
# machines: 2
here=$(dirname "$0")
for part in test net programs agents; do . "$here/lib/$part.sh"; done

export KVFERRY_COORDINATOR=http://10.7.0.1:7400
in_guest && machine_on_wire "$ROLE"
export host=10.7.0.${ROLE:-1}

# What the first machine has, for the second: what was published, and the bytes to compare with.
hand_over() {
  tar -C $work -c file file.kvf.json | busybox nc -l -p 7600 > /dev/null
}

# The second machine says when it has seen enough.
owner() {
  start_coordinator --listen 10.7.0.1:7400 --insecure
  agent a 1 --coordinators $KVFERRY_COORDINATOR --insecure && put_file a 25165824 64KiB || { logs; return 1; }
  hand_over
  busybox nc -l -p 7601 > /dev/null
  tail -n 20 $work/a.log
  stop_all
}

fetch() {
  until (exec 3<> /dev/tcp/10.7.0.1/7600 && cat <&3 > $work/handed.tar) 2> /dev/null && [ -s $work/handed.tar ]; do sleep 0.3; done
  tar -C $work -xf $work/handed.tar
}

# No other way is closed to it: auto takes the card's.
pulls_cross_the_wire() {
  pids=
  mkdir -p $work && chmod 777 $work
  fetch && agent b 2 --coordinators $KVFERRY_COORDINATOR --insecure && get_file b && from "a over rdma"
  local code=$?
  [ $code = 0 ] || logs
  stop_all
  return $code
}

export -f hand_over owner fetch pulls_cross_the_wire
if in_guest && [ "$ROLE" = 1 ]; then
  timeout 460 bash -c owner > /mnt/owner.log 2>&1 < /dev/null
else
  one_test pulls_cross_the_wire 360 bash -c pulls_cross_the_wire
  in_guest && echo | timeout 5 busybox nc 10.7.0.1 7601
fi
exit 0
