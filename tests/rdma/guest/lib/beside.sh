# Our figures beside ib_read_bw's, in turn. Sourced by guest scripts.

# theirs BYTES READS OWNERS_DEVICE READERS_DEVICE: prints "theirs BYTES MIB_PER_S".
theirs() {
  local try
  ib_read_bw -d "$3" -x 1 -s "$1" -n "$2" -t 128 -F > /dev/null 2>&1 &
  for try in {1..50}; do
    ss -Hltn 'sport = :18515' | grep -q . && break
    sleep 0.1
  done
  timeout 60 ib_read_bw -d "$4" -x 1 -s "$1" -n "$2" -t 128 -F 127.0.0.1 2>&1 \
    | awk -v bytes="$1" '$1 == bytes {print "theirs", bytes, $4}'
  wait $!
}

# figures WHAT < RUNS: from lines "theirs BYTES MIB_PER_S" and "ours BYTES MIB_PER_S [WAY]" in turn: the best of each, and
# the median of the ratios of those that stand beside each other.
figures() {
  awk -v what="$1" '
    $1 == "theirs" {last = $3; if ($3 > best[$2]) best[$2] = $3}
    $1 == "ours" && last {
      key = $2 " " $4
      if ($3 > most[key]) most[key] = $3
      at = count[key]++
      for (value = $3 / last; at > 0 && ratio[key, at - 1] > value; at--) ratio[key, at] = ratio[key, at - 1]
      ratio[key, at] = value
    }
    END {
      for (key in most) {
        split(key, part, " ")
        n = count[key]
        printf "%s of %7d bytes%s: %.1f MiB/s; ib_read_bw %.1f MiB/s; ratio %.2f (%.2f to %.2f)\n", what, part[1], \
          part[2] ? ", " part[2] : "", most[key], best[part[1]], ratio[key, int(n / 2)], ratio[key, 0], ratio[key, n - 1]
      }
    }' | sort > /dev/shm/figures
  [ -s /dev/shm/figures ]
}

note_figures() {
  local line
  [ -e /dev/shm/figures ] && while read -r line; do note "$line"; done < /dev/shm/figures
}
export -f theirs figures
