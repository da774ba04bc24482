# The programs the virtual machine needs. Sourced by ../run.

# Can a machine like this one run it at all? Else $why.
need_machine() {
  if [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
    why="the virtual machine is for x86-64 Linux, this is $(uname -s) on $(uname -m)"
  elif ! command -v apt-get > /dev/null || ! command -v dpkg > /dev/null; then
    why="the virtual machine is made of Debian packages, and there is no apt here"
  elif [[ $repo == *[[:space:]]* ]]; then
    why="the path of this checkout has a space in it, which the guest's command line cannot carry"
  else
    return 0
  fi
  return 1
}

# "what is looked for:package"
needed="
  /usr/bin/qemu-system-x86_64:qemu-system-x86
  /bin/busybox:busybox-static
  /usr/bin/cpio:cpio
  /sbin/depmod:kmod
  /usr/bin/xz:xz-utils
  /sbin/ip:iproute2
  /usr/bin/ibv_devices:ibverbs-utils
  /etc/libibverbs.d/rxe.driver:ibverbs-providers
  /usr/bin/ib_read_bw:perftest
  /usr/bin/setpriv:util-linux
"

missing_packages() {
  local pair
  for pair in $needed; do
    [ -e "${pair%%:*}" ] || printf '%s ' "${pair##*:}"
  done
}

need_packages() {
  local missing
  missing=$(missing_packages)
  [ -z "$missing" ] && return 0
  if [ "$(id -u)" != 0 ]; then
    why="missing packages; as root: apt-get install --no-install-recommends $missing"
    return 1
  fi
  say "rdma: installing $missing"
  local log=$logs/apt.log
  # shellcheck disable=SC2086 # a list of words
  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $missing; } > "$log" 2>&1
  missing=$(missing_packages)
  [ -z "$missing" ] && return 0
  why="cannot install $missing: $(grep -m1 '^E:' "$log")"
  return 1
}
