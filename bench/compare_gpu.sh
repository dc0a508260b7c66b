#!/usr/bin/env bash
# Lorikeet beside PyTorch + PEFT on the first GPU, bfloat16, all projections, the cases below.
# usage: bash bench/compare_gpu.sh [PYTHON]    PYTHON has torch with CUDA, transformers and peft
# Writes bench/results/gpu-<date>.md; JSON lines beside it. CASES="shape:batch:seq_len:rank ..." overrides the cases.
source "$(dirname "$0")/../tools/common.sh"

python=${1:-python3} steps=${STEPS:-10}
[ -x build/bench/bench_step ] || { configure_build && compile build bench/bench_step; }
"$python" -c 'import torch, peft; assert torch.cuda.is_available()' || die "$python: needs torch with CUDA, transformers and peft"

mkdir -p bench/results
result=bench/results/gpu-$(date +%Y-%m-%d)
: >"$result.jsonl"
for case in ${CASES:-smollm2-135m:16:512:16 llama3.2-1b:8:1024:16 llama2-7b:1:512:16 llama2-7b:4:2048:16}; do
  IFS=: read -r shape batch seq_len rank <<<"$case"
  flags=(--shape "$shape" --batch "$batch" --seq-len "$seq_len" --rank "$rank" --targets all-linear
    --dtype bf16 --steps "$steps")
  say "$case: lorikeet"
  build/bench/bench_step "${flags[@]}" --device cuda:0 >>"$result.jsonl"
  for mode in ${MODES:-eager compile graph}; do
    say "$case: peft, $mode"
    "$python" bench/peers/peft_gpu.py "${flags[@]}" --mode "$mode" >>"$result.jsonl" ||
      echo "{\"engine\": \"peft\", \"mode\": \"$mode\", \"shape\": \"$shape\", \"batch\": $batch, \"seq_len\": $seq_len, \"dtype\": \"bf16\", \"error\": \"failed\"}" >>"$result.jsonl"
  done
done
python3 bench/table.py "$result.jsonl" "GPU: one LoRA step, all projections" >"$result.md"
cat "$result.md"
