#!/bin/sh
# Everything that needs a GPU, from binaries that were built elsewhere:
#   tests/gpu_check.sh DIR [OUT]     DIR holds test_parity, test_parity_attention, test_cuda_memory and, if they
#                                    are wanted, other tests and bench_cuda_kernels; logs go to OUT (default DIR)
#   SKIP="tests sanitizer bench"           leaves parts out;  LIMIT=600   seconds for each program
# Exits 1 if a test or a sanitizer found something.
set -u
dir=$1
out=${2:-$1}
failed=0
skip=" ${SKIP:-} "
mkdir -p "$out"
has() { case "$skip" in *" $1 "*) return 1 ;; esac; }

run() {  # run NAME COMMAND...: the log's last line, and 3 failures, on stdout
  name=$1
  shift
  start=$(date +%s)
  timeout "${LIMIT:-600}" "$@" >"$out/$name.log" 2>&1
  rc=$?
  echo "$name: rc $rc, $(($(date +%s) - start)) s: $(tail -n 1 "$out/$name.log" | cut -c1-150)"
  if [ $rc -ne 0 ] && [ $rc -ne 77 ]; then
    failed=1
    grep -E "ERROR|TEST CASE|error/bound|values:|cuda:" "$out/$name.log" | head -n 40 | cut -c1-330
  fi
}

has tests && for test in "$dir"/test_*; do
  case $test in *.log | *.p) continue ;; esac
  [ -x "$test" ] && run "$(basename "$test")" "$test"
done

if has sanitizer && command -v compute-sanitizer >/dev/null; then
  # Small shapes only: the tools slow a kernel down a hundredfold.
  small='*rope*,*uniform draws*,*moved bit*,*moving no rows*,*extreme logits*,*zero product*,*adamw skips*,*far from zero*'
  for tool in memcheck racecheck initcheck synccheck; do
    run "$tool.parity" compute-sanitizer --tool $tool --error-exitcode 9 "$dir/test_parity" -tc="$small"
    attention='*cache*,*no rows*,*column slices*'
    [ $tool = racecheck ] && attention='*cache*' # minutes otherwise
    run "$tool.attention" compute-sanitizer --tool $tool --error-exitcode 9 "$dir/test_parity_attention" \
      -tc="$attention"
  done
fi

if has bench && [ -x "$dir/bench_cuda_kernels" ]; then
  "$dir/bench_cuda_kernels" >"$out/bench.log" 2>&1
  grep -E "TFLOP/s|GB/s|device" "$out/bench.log" | sed 's/iterations:3\/manual_time//; s/ \+/ /g' | cut -c1-160
fi
exit $failed
