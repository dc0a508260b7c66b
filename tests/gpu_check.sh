#!/usr/bin/env bash
# Runs everything that needs a GPU, from binaries that were built elsewhere:
#   tests/gpu_check.sh DIR [OUT]     DIR holds test_ops, test_parity, test_parity_attention, test_cuda_memory and,
#                                    if they are wanted, other tests and bench_cuda_kernels; logs go to OUT (default DIR)
#   SKIP="tests sanitizer bench"           leaves parts out;  LIMIT=600   seconds for each program
#   TOOLS="memcheck racecheck initcheck synccheck"     the sanitizer's, all by default
# Exits 1 if a test or a sanitizer found something.
set -u
dir=$1
out=${2:-$1}
skip=" ${SKIP:-} "
mkdir -p "$out"
rm -f "$out/failed" "$out"/*.line
has() { case "$skip" in *" $1 "*) return 1 ;; esac; }

run() {  # run NAME COMMAND...: the log's last line, and 3 failures, on stdout
  local name=$1 start rc=0
  shift
  start=$(date +%s)
  timeout "${LIMIT:-600}" "$@" >"$out/$name.log" 2>&1 || rc=$?
  echo "$name: rc $rc, $(($(date +%s) - start)) s: $(tail -n 1 "$out/$name.log" | cut -c1-150)"
  if [ $rc -ne 0 ] && [ $rc -ne 77 ]; then
    touch "$out/failed"
    grep -E "ERROR|Error|TEST CASE|error/bound|values:|cuda:" "$out/$name.log" | head -n 40 | cut -c1-330
  fi
}

has tests && for test in "$dir"/test_*; do
  case $test in *.log | *.p) continue ;; esac
  [ -x "$test" ] && run "$(basename "$test")" "$test"
done

if has sanitizer && command -v compute-sanitizer >/dev/null; then
  # Small shapes only, a process for each case, eight at a time: the tools slow a kernel down a hundredfold.
  export LORIKEET_SMALL_SHAPES=1
  check_case() {  # check_case NAME TOOL PROGRAM CASE
    run "$1" compute-sanitizer --tool "$2" "$3" -tc="$4"
    local log=$out/$1.log
    grep -qE "SUMMARY: .*\b0 errors" "$log" && return
    # Races inside cuBLASLt's own kernels (nvjet hands over by barriers that racecheck doesn't follow) are not ours.
    [ "$2" = racecheck ] && grep -q "RACECHECK SUMMARY" "$log" && ! grep "Error" "$log" | grep -qv nvjet && return
    touch "$out/failed"
    echo "$1: found something in $4"
    grep "Error" "$log" | grep -v nvjet | head -n 5
  }
  number=0
  for tool in ${TOOLS:-memcheck racecheck initcheck synccheck}; do
    for test in test_ops test_parity test_parity_attention; do
      while read -r name; do
        while [ "$(jobs -rp | wc -l)" -ge 8 ]; do wait -n; done
        number=$((number + 1))
        check_case "$tool.$number" "$tool" "$dir/$test" "$name" >"$out/$tool.$number.line" &
      done < <("$dir/$test" -ltc | grep '^cuda:' | tr ',' '?')
    done
    wait
    cat "$out/$tool".*.line | grep -v "rc 0"
    echo "$tool: $(grep -L "found\|rc [1-9]" "$out/$tool".*.line | wc -l) cases without a finding of $(ls "$out/$tool".*.line | wc -l)"
  done
fi

if has bench && [ -x "$dir/bench_cuda_kernels" ]; then
  "$dir/bench_cuda_kernels" >"$out/bench.log" 2>&1
  grep -E "TFLOP/s|GB/s|device" "$out/bench.log" | sed 's/iterations:3\/manual_time//; s/ \+/ /g' | cut -c1-160
fi
[ ! -e "$out/failed" ]
