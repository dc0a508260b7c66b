#!/usr/bin/env bash
# clang-tidy over the C++ files given, or over those that differ from main's last commit, or with --all over all.
# CUDA files are left to nvcc: clang-tidy 14 does not know CUDA 13.
source "$(dirname "$0")/common.sh"

install_packages clang-tidy
# A folder in which nothing is built: its list of commands names each file alone. With CUDA where build/ has it.
options=$(cat build/lorikeet-options 2>/dev/null || echo -Dcuda=disabled)
configure build-lint $options -Dunity_libraries=false
case "${1-}" in
  --all) mapfile -t files < <(git ls-files '*.cpp') ;;
  "") mapfile -t files < <({ git diff --name-only HEAD; git ls-files --others --exclude-standard; } | grep '\.cpp$' || true) ;;
  *) files=("$@") ;;
esac
# Checks only what the build compiles: a file without a command would be checked with guessed flags.
mapfile -t files < <(for f in "${files[@]}"; do grep -qF "$f\"" build-lint/compile_commands.json && echo "$f"; done)
[ ${#files[@]} -gt 0 ] || { echo "nothing to check" >&2; exit 0; }
say "clang-tidy on ${#files[@]} files"
printf '%s\0' "${files[@]}" | xargs -0 -n 1 -P "$(nproc)" clang-tidy --quiet -p build-lint \
  --extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-ignored-optimization-argument
