#!/usr/bin/env bash
# Format and forbidden words over the whole tree: bash tools/check_style.sh
# Prints path:line of each offence and exits 1.
cd "$(dirname "$0")/.." || exit 2
set -uo pipefail
failed=0

mapfile -t sources < <(git ls-files --cached --others --exclude-standard '*.cpp' '*.h' '*.cu' '*.cuh')
[ ${#sources[@]} -gt 0 ] || { echo "no sources here" >&2; exit 2; }
clang-format --dry-run -Werror "${sources[@]}" || failed=1

# forbid WHY PATTERN PATH...: no line of the files under PATH may match (extended regular expression).
# A line that has to may say so with a comment: // style: ok, REASON
forbid() {
  local why=$1 pattern=$2 found
  shift 2
  found=$(git grep --untracked -nE "$pattern" -- "$@" ':!tools/check_style.sh' | grep -v '// style: ok, ')
  [ -z "$found" ] || { printf '%s\n  ^ %s\n' "$found" "$why"; failed=1; }
}
code=(src tools bench tests)

forbid 'sums are exact in order: no fast-math, in no build file' \
  'ffast-math|use_fast_math|funsafe-math|Ofast' '*meson.build' '*meson_options.txt' '*.sh' "${code[@]}"
forbid 'they stop at the first bad character: use std::from_chars or io/checked.h' \
  '\b(atoi|atol|atof|stoi|stol|stoll|stoul|stoull|stof|stod|strtol|strtoll|strtoul|strtoull|strtod|strtof|sscanf)[[:space:]]*\(' src
forbid 'a file may be wrong, and release builds must notice: throw InputError' \
  '(^|[^_[:alnum:]])assert[[:space:]]*\(' src
forbid 'a library never exits and never prints' \
  '\b(std::)?(exit|abort|_exit|quick_exit)[[:space:]]*\(|std::(cout|cerr|clog)\b|\b(std::)?(printf|puts)[[:space:]]*\(' src
forbid 'no order of additions is fixed with a float atomic' 'atomicAdd' src/cuda
forbid 'the sequence of random numbers must not depend on the library: use tensor/philox.h' \
  '\b(rand|srand)[[:space:]]*\(|std::random_device' src
forbid 'tests must be able to make the system fail: ask io/paths.h, io/input_file.h, io/durable.h' \
  '::l?stat\(|std::filesystem|<filesystem>|<sys/stat\.h>|\bf(open|stream)\b|\b[io]fstream\b' src tools ':!src/io' ':!src/cpu/host_memory.cpp' ':!src/cpu/control_groups.cpp' ':!src/cpu/processors.cpp'
forbid 'std::filesystem is for the text of paths: ask the system through io/fs.h' \
  '(std::filesystem|stdfs)::[a-z_]*(exists|is_|status|canonical|iterator|create|remove|rename|copy|size|time)' src/io
forbid 'new and delete belong to the allocator: use a container or unique_ptr' \
  '(^|[^_[:alnum:]])(new [A-Za-z_:]+[[({]|delete (\[\])?[a-z])|\b(malloc|calloc|realloc)[[:space:]]*\(' src
forbid 'names from a header must not leak into every file' '^using namespace' '*.h' '*.cuh'
forbid 'each header is included once' '^#ifndef [A-Z_]+_H_?$' '*.h' '*.cuh'
forbid 'trailing white space' '[[:space:]]+$' '*.md' '*.py' '*.sh' '*meson.build'

for header in $(git ls-files --cached --others --exclude-standard '*.h' '*.cuh'); do
  grep -q '^#pragma once$' "$header" || { echo "$header: no #pragma once"; failed=1; }
done
exit $failed
