#!/usr/bin/env bash
# clang-tidy over the C++ files given, or over those that differ from main's last commit, or with --all over all.
# Needs build/ (tools/test.sh makes it). CUDA files are left to nvcc: clang-tidy 14 does not know CUDA 13.
source "$(dirname "$0")/common.sh"

install_packages clang-tidy
[ -f build/compile_commands.json ] || die "no build/ yet: run bash tools/test.sh"
case "${1-}" in
  --all) mapfile -t files < <(git ls-files '*.cpp') ;;
  "") mapfile -t files < <({ git diff --name-only HEAD; git ls-files --others --exclude-standard; } | grep '\.cpp$' || true) ;;
  *) files=("$@") ;;
esac
# Checks only what the build compiles: a file without a command would be checked with guessed flags.
mapfile -t files < <(for f in "${files[@]}"; do grep -qF "$f\"" build/compile_commands.json && echo "$f"; done)
[ ${#files[@]} -gt 0 ] || { echo "nothing to check" >&2; exit 0; }
say "clang-tidy on ${#files[@]} files"
printf '%s\0' "${files[@]}" | xargs -0 -n 1 -P "$(nproc)" clang-tidy --quiet -p build \
  --extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-ignored-optimization-argument
