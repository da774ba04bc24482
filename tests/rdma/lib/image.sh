# Makes the virtual machine: Debian's kernel and a small initial file system. Kept in the cache. Sourced by ../run.

cache=${KVFERRY_RDMA_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/kvferry/rdma-vm}

# In the order of their needs. crc32_generic, not crc32_pclmul, which is half as fast under emulation.
modules="virtio_pci 9pnet_virtio 9p overlay crc32_generic rdma_rxe rdma_ucm ib_uverbs dummy veth virtio_net sch_netem"

need_image() {
  # Another version of this file makes another image.
  local stamp
  stamp=$(cksum < "$here/lib/image.sh" | cut -d' ' -f1)
  image=$cache/$stamp
  [ -e "$image/ready" ] && return 0
  mkdir -p "$cache" || { why="cannot write to $cache"; return 1; }
  (
    flock 9
    [ -e "$image/ready" ] && exit 0
    say "rdma: making the virtual machine (once)"
    rm -rf "$cache"/[0-9]*
    mkdir -p "$image" && cd "$image" && make_image
  ) 9> "$cache/lock" > "$logs/image.log" 2>&1 || {
    why="cannot make the virtual machine: $(tail -1 "$logs/image.log")"
    return 1
  }
}

make_image() {
  set -e
  local package version
  package=$(apt-cache depends linux-image-amd64 2> /dev/null | awk '/Depends:/{print $2; exit}')
  if [ -z "$package" ]; then
    apt-get update -q
    package=$(apt-cache depends linux-image-amd64 | awk '/Depends:/{print $2; exit}')
  fi
  [ -n "$package" ] || { echo "apt knows no kernel package"; exit 1; }
  apt-get download -q "$package"
  mkdir -p unpacked
  dpkg -x "$package"*.deb unpacked
  version=$(ls unpacked/lib/modules)
  depmod -b unpacked "$version"
  make_initrd "$version"
  make_kernel "unpacked/boot/vmlinuz-$version"
  rm -rf unpacked initrd "$package"*.deb
  touch ready
}

make_initrd() {
  mkdir -p initrd/{bin,dev,mnt,mods,proc,sys}
  cp /bin/busybox initrd/bin/busybox
  local count=0 module file name
  for module in $modules; do
    for file in $(modprobe -d unpacked -S "$1" --show-depends "$module" 2> /dev/null | awk '$1 == "insmod" {print $2}'); do
      name=$(basename "$file")
      compgen -G "initrd/mods/*_$name" > /dev/null && continue
      cp "$file" "initrd/mods/$(printf %03d $count)_$name"
      count=$((count + 1))
    done
  done
  cat > initrd/init << 'INIT'
#!/bin/busybox sh
# Key=value words of the kernel's command line arrive as environment: GUEST is the script to run.
B=/bin/busybox
$B mount -t proc proc /proc; $B mount -t sysfs sys /sys; $B mount -t devtmpfs dev /dev
for m in /mods/*; do $B insmod $m || $B echo "cannot load $m"; done
p9=trans=virtio,version=9p2000.L,msize=512000
$B mount -t 9p -o $p9,cache=loose host /mnt || $B echo "cannot mount the host's files"
for d in proc sys dev; do $B mount --bind /$d /mnt/$d; done
$B mkdir -p /dev/shm; $B mount -t tmpfs shm /mnt/dev/shm; $B mount -t tmpfs run /mnt/run
$B mount -t 9p -o $p9,cache=none out /mnt/mnt || $B echo "cannot mount the output"
$B ip link set lo up
$B chroot /mnt /bin/bash $GUEST; $B echo "@exit $?"
$B poweroff -f
INIT
  chmod +x initrd/init
  (cd initrd && find . | cpio -o -H newc --quiet | gzip -1) > initrd.gz
}

# Uncompressed, qemu starts it directly: boot takes half as long.
make_kernel() {
  local offset
  offset=$(LC_ALL=C grep -aobP '\xfd7zXZ\x00' "$1" | head -1 | cut -d: -f1) || true
  [ -n "$offset" ] && tail -c +$((offset + 1)) "$1" | xz -dc --single-stream > kernel 2> /dev/null || true
  head -c4 kernel 2> /dev/null | grep -q ELF || cp "$1" kernel
}
