#!/usr/bin/env bash
# Builds and tests everything on Debian 12: bash tools/test.sh [--slow]
# Installs what is missing, builds into build/ and, with sanitizers, what reads files into build-asan/. With the CUDA
# toolkit every kernel is compiled; without a GPU the tests that need one are skipped and counted so.
# On two cores: 19 to 31 minutes the first time, by processor and toolkit, 6 minutes once built. The last line sums up.
# --slow: also runs every test under the sanitizers, half an hour.
source "$(dirname "$0")/common.sh"

slow=
case "${1-}" in
  "") ;;
  --slow) slow=yes ;;
  *) die "usage: bash tools/test.sh [--slow]" ;;
esac

passed=0 failed=0 skipped=0
count() { passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3)); }

# check NAME COMMAND...: a check that counts as one test case.
check() {
  local name=$1
  shift
  say "Check: $name"
  if "$@" >&2; then count 1 0 0; else echo "FAILED: $name" >&2; count 0 1 0; fi
}

# run_tests FOLDER OPTION...: test programs, as many at a time as there are cores; their cases are added up.
run_tests() {
  local folder=$1 log=$1/meson-logs/testlog.json sums
  rm -f "$log"
  OMP_WAIT_POLICY=passive OMP_NUM_THREADS=2 meson test -C "$folder" --no-rebuild --print-errorlogs \
    --num-processes "$(nproc)" "${@:2}" >&2 || true
  if [ -f "$log" ] && sums=$(python3 tools/count_tests.py "$log"); then
    count $sums
  else
    echo "FAILED: $folder: no test log" >&2
    count 0 1 0
  fi
}

finish() {
  printf '\nTook %d:%02d.\n' $((SECONDS / 60)) $((SECONDS % 60)) >&2
  printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
  [ "$failed" = 0 ]
}

install_packages $BUILD_PACKAGES libbenchmark-dev clang-format git
fetch_model || warn "no base model: the tests that need it are skipped"

check "format and style" bash tools/check_style.sh

configure_build kernels
if compile build all exercises; then
  say "Tests"
  run_tests build
else
  echo "FAILED: build" >&2
  count 0 1 0
fi

[ -z "$slow" ] || check "50 kills of runs of several processes" \
  python3 tests/kill_runs.py build/tools/finetune --processes 4 --kills 50

# Address and undefined-behaviour sanitizers, on the CPU. The base model is left out, as it would take minutes. Checks for
# null pointers and wrong types are off: they double the compiler's work, and a null pointer stops a program anyway.
what="what reads files" target=input-tests suite=(--suite input)
[ -z "$slow" ] || { what="everything"; target=all; suite=(--no-suite scripts); }
say "Building $what with sanitizers (build-asan/)"
if configure build-asan -Dcuda=disabled -Dbuildtype=debug -Dcpp_args="['-g1', '-fno-sanitize=null,vptr']" \
  -Db_sanitize=address,undefined -Db_lundef=false && compile build-asan "$target"; then
  say "Tests with sanitizers"
  ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1 \
    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 LORIKEET_SMOLLM2= \
    run_tests build-asan "${suite[@]}" --timeout-multiplier 3
else
  echo "FAILED: build with sanitizers" >&2
  count 0 1 0
fi

finish
