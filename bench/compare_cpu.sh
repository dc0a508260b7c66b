#!/usr/bin/env bash
# Lorikeet beside PyTorch + PEFT on this CPU: one LoRA step of SmolLM2-135M, 2 x 256 tokens, all projections.
# usage: bash bench/compare_cpu.sh [PYTHON]    PYTHON has torch, transformers and peft (default: .venv-peers)
# Engines take turns, so that a busy minute hits both. Writes bench/results/cpu-<date>.md; JSON lines beside it.
source "$(dirname "$0")/../tools/common.sh"

steps=${STEPS:-10} rounds=${ROUNDS:-2}
python=${1:-.venv-peers/bin/python}
if [ ! -x "$python" ]; then
  install_packages python3-venv
  say "Installing PyTorch and PEFT into .venv-peers (once, some 200 MB on a CPU-only index, more elsewhere)"
  python3 -m venv .venv-peers
  .venv-peers/bin/pip install -q -r bench/peers/requirements.txt
fi
[ -x build/bench/bench_step ] || { configure_build && compile build bench/bench_step; }

mkdir -p bench/results
result=bench/results/cpu-$(date +%Y-%m-%d)
: >"$result.jsonl"
shape=(--shape smollm2-135m --batch 2 --seq-len 256 --rank 8 --targets all-linear --steps "$steps")
for dtype in f32 bf16; do
  for ((round = 1; round <= rounds; ++round)); do
    say "$dtype, round $round of $rounds: lorikeet"
    build/bench/bench_step "${shape[@]}" --dtype $dtype --device cpu >>"$result.jsonl"
    for mode in ${MODES:-eager compile}; do
      say "$dtype, round $round of $rounds: peft, $mode"
      "$python" bench/peers/peft_cpu.py "${shape[@]}" --dtype $dtype --mode $mode >>"$result.jsonl"
    done
  done
done
python3 bench/table.py "$result.jsonl" "CPU: one LoRA step, SmolLM2-135M, 2 x 256 tokens, rank 8, all projections" >"$result.md"
cat "$result.md"
