# Boots a guest and reports what it says. Sourced by ../run.

# "# key: value" in the guest script, or a default.
setting() {
  local value
  value=$(sed -n "s/^# $2: //p" "$1" | head -1)
  echo "${value:-$3}"
}

# run_guest NAME SCRIPT: boots, and takes the lines "@test STATUS NAME SECONDS DETAIL" and "@note TEXT" off its console.
run_guest() {
  local name=$1 script=$2 bound out console status line seen=0
  bound=$(setting "$script" bound 120)
  out=$logs/$name console=$logs/$name.console
  mkdir -p "$out"
  # Where only some tests are asked for, a guest without any is not started.
  if [ -n "$filter" ] && ! VERBS_TEST=$verbs_test LIST=1 FILTER=$filter bash "$script" | grep -q .; then
    return 0
  fi
  : > "$console"
  while IFS= read -r line; do
    line=${line%$'\r'}
    case $line in
      *@test\ *) line=${line#*@test } ;;
      *@note\ *) note "${line#*@note }"; continue ;;
      *@exit\ *) status=${line#*@exit }; continue ;;
      *) continue ;;
    esac
    # shellcheck disable=SC2086 # words
    set -- $line
    seen=$((seen + 1))
    cp "$out/$2.log" "$logs/$name.$2.log" 2> /dev/null
    result "$1" "$name/$2" "$3" "${*:4}"
  done < <(boot "$script" "$bound" "$out" 2>&1 | tee "$console")
  cp "$console" "$logs/$name.boot.log"
  case ${status:-none} in
    0) [ "$seen" -gt 0 ] || result FAIL "$name/boot" 0 "it ran no test" ;;
    none) result FAIL "$name/boot" "$bound" "the guest stopped or did not end within $bound s" ;;
    *) result FAIL "$name/boot" 0 "the guest's script ended with $status" ;;
  esac
}

# -cpu max,-erms: with erms the kernel copies with `rep movsb`, which is half as fast under emulation.
boot() {
  timeout "$2" qemu-system-x86_64 -M q35 -accel tcg -cpu max,-erms \
    -m "$(setting "$1" memory 1024)" -smp "$(setting "$1" processors 1)" \
    -display none -serial stdio -monitor none -no-reboot -nic none \
    -kernel "$image/kernel" -initrd "$image/initrd.gz" \
    -append "console=ttyS0 panic=-1 quiet GUEST=$1 FILTER=$filter VERBS_TEST=$verbs_test" \
    -fsdev local,id=h,path=/,security_model=none,multidevs=remap,readonly=on \
    -device virtio-9p-pci,fsdev=h,mount_tag=host \
    -fsdev local,id=o,path="$3",security_model=none,multidevs=remap \
    -device virtio-9p-pci,fsdev=o,mount_tag=out < /dev/null
}
