#!/usr/bin/env bash
# Times finetune from its start to the end of its first step, on a model of real size whose weights are in the page cache.
# usage: bash bench/load.sh [SHAPE] [FOLDER] [FLAGS of finetune...]
#   SHAPE (llama2-7b) with random weights is written to FOLDER (/dev/shm/lorikeet-load) and removed at the end.
# Prints seconds to load, to the first step, and for the whole run of 4 steps, with the base hashed (finetune's default)
# and without; then bench_step's first step on the same files.
source "$(dirname "$0")/../tools/common.sh"

shape=${1:-llama2-7b}
folder=${2:-/dev/shm/lorikeet-load}
shift $(($# < 2 ? $# : 2))
[ ! -e "$folder" ] || die "$folder exists"
trap 'rm -rf "$folder"' EXIT

say "Writing $shape to $folder"
build/bench/make_model --shape "$shape" --out "$folder/model"
cp tests/golden/peft/tiny/tokenizer.json "$folder/model/"
for i in 1 2 3 4 5 6 7 8; do echo '{"text": "a b c d e f g h i j k l m n o p q r s t u v w x y z"}'; done >"$folder/rows.jsonl"
cat "$folder"/model/*.safetensors >/dev/null # into the page cache, if they are not there

for way in "" "--no-verify-base"; do
  say "finetune $way $*"
  rm -rf "$folder/out"
  start=$(date +%s.%N)
  build/tools/finetune --model "$folder/model" --data "$folder/rows.jsonl" --out "$folder/out" --steps 4 --batch 4 \
    --seq-len 64 --rank 16 --targets all-linear $way "$@" 2>"$folder/log" || { tail -n 5 "$folder/log" >&2; exit 1; }
  python3 - "$folder/out/run.json" "$start" "$(date +%s.%N)" <<'PYTHON'
import json, sys
run = json.load(open(sys.argv[1]))
print(f"load {run['load_seconds']:.2f} s, first step {run['result']['first_step_seconds']:.2f} s after the start, "
      f"whole run {float(sys.argv[3]) - float(sys.argv[2]):.2f} s, on {run['device']['description']}")
PYTHON
done
say "bench_step --model"
build/bench/bench_step --model "$folder/model" --batch 1 --seq-len 512 --rank 16 --dtype bf16 --steps 3 --warmup 3 \
  2>&1 >/dev/null | grep "after start"
