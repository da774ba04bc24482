# Boots guests and reports what they say. Sourced by ../run.

# "# key: value" in the guest script, or a default.
setting() {
  local value
  value=$(sed -n "s/^# $2: //p" "$1" | head -1)
  echo "${value:-$3}"
}

# run_guest NAME SCRIPT: boots, and takes the lines "@test STATUS NAME SECONDS DETAIL" and "@note TEXT" off the console.
run_guest() {
  local name=$1 script=$2 console=$logs/$1.boot.log bound machines line seen=0 ended=0 worst=0
  bound=$(setting "$script" bound 120)
  machines=$(setting "$script" machines 1)
  # Where only some tests are asked for, a guest without any is not started.
  if [ -n "$filter" ] && ! VERBS_TEST=$verbs_test LIST=1 FILTER=$filter bash "$script" | grep -q .; then
    return 0
  fi
  while IFS= read -r line; do
    line=${line%$'\r'}
    case $line in
      *@test\ *) line=${line#*@test } ;;
      *@note\ *) note "${line#*@note }"; continue ;;
      *@exit\ *)
        line=${line#*@exit }
        ended=$((ended + 1))
        [ "$line" = 0 ] || worst=$line
        continue
        ;;
      *) continue ;;
    esac
    # shellcheck disable=SC2086 # words
    set -- $line
    seen=$((seen + 1))
    cat "$logs/$name".[12]/"$2.log" > "$logs/$name.$2.log" 2> /dev/null
    result "$1" "$name/$2" "$3" "${*:4}"
  done < <(boot_all "$name" "$script" "$machines" "$bound" 2>&1 | tee "$console")
  if [ "$ended" -lt "$machines" ]; then
    result FAIL "$name/boot" "$bound" "a guest stopped, or did not end within $bound s"
  elif [ "$worst" != 0 ]; then
    result FAIL "$name/boot" 0 "a guest's script ended with $worst"
  elif [ "$seen" = 0 ]; then
    result FAIL "$name/boot" 0 "it ran no test"
  fi
}

# boot_all NAME SCRIPT MACHINES BOUND: one machine alone, or two on a wire.
boot_all() {
  local wire=$logs/$1.wire end
  if [ "$3" = 1 ]; then
    boot "$1" "$2" 1 "$4" -nic none
    return
  fi
  end="addr.type=unix,addr.path=$wire"
  boot "$1" "$2" 1 "$4" -netdev "stream,id=n,server=on,$end" -device "$(card 1)" &
  until [ -S "$wire" ] || ! kill -0 $! 2> /dev/null; do sleep 0.1; done
  boot "$1" "$2" 2 "$4" -netdev "stream,id=n,server=off,$end" -device "$(card 2)" &
  wait
}

card() { echo "virtio-net-pci,netdev=n,mac=52:54:00:00:00:0$1,host_mtu=9000,romfile="; }

# boot NAME SCRIPT ROLE BOUND NETWORK...
# -cpu max,-erms: with erms the kernel copies with `rep movsb`, which is half as fast under emulation.
boot() {
  local out=$logs/$1.$3 script=$2 role=$3 bound=$4 clock=()
  shift 4
  # Time is then counted in instructions, a nanosecond each, whatever else this machine does.
  [ "$(setting "$script" clock host)" = instructions ] && clock=(-icount shift=0)
  mkdir -p "$out"
  timeout "$bound" qemu-system-x86_64 -M q35 -accel tcg -cpu max,-erms "${clock[@]}" \
    -m "$(setting "$script" memory 1024)" -smp "$(setting "$script" processors 1)" \
    -display none -serial stdio -monitor none -no-reboot "$@" \
    -kernel "$image/kernel" -initrd "$image/initrd.gz" \
    -append "console=ttyS0 panic=-1 quiet GUEST=$script ROLE=$role FILTER=$filter VERBS_TEST=$verbs_test" \
    -fsdev local,id=h,path=/,security_model=none,multidevs=remap,readonly=on \
    -device virtio-9p-pci,fsdev=h,mount_tag=host \
    -fsdev local,id=o,path="$out",security_model=none,multidevs=remap \
    -device virtio-9p-pci,fsdev=o,mount_tag=out < /dev/null
}
