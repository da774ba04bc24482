# Real processes on hosts of their own, with wires that are cut, narrow, lossy and long: this kernel has what CI's lacks.
# bound: 1200
here=$(dirname "$0")
. "$here/lib/test.sh"
. "$here/lib/programs.sh"

export KVFERRY_HOSTS_REQUIRED=1
for name in $("$E2E" --list 2> /dev/null | sed -n 's/^\(chaos::wire::.*\): test$/\1/p'); do
  one_test "${name##*::}" 300 "$E2E" --exact "$name" --nocapture --test-threads=1
done
exit 0
