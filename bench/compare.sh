#!/usr/bin/env bash
# Lorikeet and its peers on this machine in one run: one LoRA step (forward, backward, clip, AdamW) for each case.
# usage: bash bench/compare.sh cpu|gpu [PYTHON] [--matrix OPTIONS...]    PYTHON has torch, transformers and peft (gpu: with CUDA)
# --matrix: many models, lengths, ranks and targets, in shares, the worst ratio first: see bench/matrix.py --help. Without it:
# Writes bench/results/<device>-<date>.md and a file of JSON lines next to it; bench/README.md explains both. Options:
#   CASES="shape:batch:seq_len:rank[:recompute] ..."   shape: a name, or the path of a config.json
#   MODES="eager compile-layer graph unsloth"   for every case (MODES= for Lorikeet alone); by default as listed below
#   DROPOUT=0.1   in every case    DTYPES, STEPS=10, WARMUP=4, ROUNDS=1, LIMIT=600 (seconds a process may take), TARGETS=all-linear
#   UNSLOTH_PATH=DIR   put on PYTHONPATH for Unsloth alone    RECOMPUTE=block   Lorikeet's way in recompute cases
source "$(dirname "$0")/../tools/common.sh"

# Each case and its modes: those that may be its best peer, and eager. `graph` compiles a whole model for minutes.
device=${1:-} python=.venv-peers/bin/python own_python=1
shift $(($# > 0))
[ $# = 0 ] || [ "$1" = --matrix ] || { python=$1 own_python= && shift; }
case $device in
  cpu)
    dtypes=${DTYPES:-f32 bf16} flag=cpu
    cases=("smollm2-135m:2:256:8 eager compile-layer")
    ;;
  gpu)
    dtypes=${DTYPES:-bf16} flag=cuda
    cases=("llama2-7b:4:2048:16 eager compile-layer unsloth"
      "llama2-7b:4:2048:16:recompute compile-layer unsloth"
      "llama2-7b:1:512:16 eager compile-layer graph"
      "llama3.2-1b:8:1024:16 eager compile-layer unsloth"
      "tinyllama-1.1b:8:2048:16 eager compile-layer unsloth"
      "smollm2-135m:16:512:16 eager compile-layer graph"
      "llama3-8b:2:2048:16 eager compile-layer unsloth")
    ;;
  *) die "usage: bash bench/compare.sh cpu|gpu [PYTHON] [--matrix OPTIONS...]" ;;
esac
[ $# = 0 ] || [ "$1" = --matrix ] || die "$1: unknown"
if [ -n "${CASES:-}" ]; then
  chosen=()
  for name in $CASES; do
    modes="eager compile-layer"
    for line in "${cases[@]}"; do [ "${line%% *}" != "$name" ] || modes=${line#* }; done
    chosen+=("$name $modes")
  done
  cases=("${chosen[@]}")
fi

if ! command -v "$python" >/dev/null; then
  [ -n "$own_python" ] || die "$python: no such program"
  install_packages python3-venv
  say "Installing PyTorch and PEFT into .venv-peers (once, gigabytes unless the index is one of CPU packages)"
  python3 -m venv .venv-peers
  .venv-peers/bin/pip install -q -r bench/peers/requirements.txt
fi
[ "$device" = cpu ] || "$python" -c 'import torch; assert torch.cuda.is_available()' || die "$python: needs torch with CUDA"
[ -x build/bench/bench_step ] || { configure_build && compile build bench/bench_step; }
if [ $# != 0 ]; then exec python3 bench/matrix.py --device "$flag" --python "$python" "${@:2}"; fi

unsloth_path=${UNSLOTH_PATH:-}${UNSLOTH_PATH:+${PYTHONPATH:+:}}${PYTHONPATH:-} # an empty item would be this folder
has_unsloth=1
PYTHONPATH=$unsloth_path "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("unsloth") is None)' || has_unsloth=
[ -n "$has_unsloth" ] || warn "$python has no unsloth: left out"

mkdir -p bench/results
result=bench/results/$device-$(date +%Y-%m-%d)
: >"$result.jsonl"

# measure ENGINE MODE COMMAND...: appends the JSON lines of COMMAND; if it fails, a line that says why.
measure() {
  local engine=$1 mode=$2 rc=0 log
  shift 2
  say "$name $dtype: $engine $mode"
  log=$(mktemp)
  { timeout "${LIMIT:-600}" "$@" 2>&1 >&3 | tee "$log" >&2; } 3>>"$result.jsonl" || rc=$?
  [ $rc = 0 ] || python3 - "$engine" "$mode" "$rc" "$log" "$shape" "$batch" "$seq_len" "$rank" "$targets" "$dtype" \
    "${recompute:-none}" "$flag" "${DROPOUT:-0}" >>"$result.jsonl" <<'PYTHON'
import json, sys
engine, mode, rc, log, shape, batch, seq_len, rank, targets, dtype, recompute, device, dropout = sys.argv[1:]
lines = [line.strip() for line in open(log, encoding="utf-8", errors="replace") if line.strip()]
error = "took too long" if rc == "124" else lines[-1][:300] if lines else f"exit code {rc}"
print(json.dumps(dict(engine=engine, mode=mode, shape=shape, batch=int(batch), seq_len=int(seq_len), rank=int(rank),
                      targets=targets, dtype=dtype, recompute=recompute, device=device, dropout=float(dropout), error=error)))
PYTHON
  rm -f "$log"
}

targets=${TARGETS:-all-linear}
for line in "${cases[@]}"; do
  name=${line%% *} modes=${MODES-${line#* }}
  IFS=: read -r shape batch seq_len rank recompute <<<"$name"
  for dtype in $dtypes; do
    flags=(--batch "$batch" --seq-len "$seq_len" --rank "$rank" --targets "$targets" --dtype "$dtype"
      --dropout "${DROPOUT:-0}" --steps "${STEPS:-10}" --warmup "${WARMUP:-4}")
    case $shape in
      *.json) flags+=(--config "$shape") ;;
      *) flags+=(--shape "$shape") ;;
    esac
    ours=(--device "${flag/cuda/cuda:0}" --profile) theirs=(--device "$flag") peft=() unsloth=
    [ -z "$recompute" ] || ours+=(--recompute "${RECOMPUTE:-block}") theirs+=(--recompute)
    for mode in $modes; do
      if [ "$mode" = unsloth ]; then unsloth=$has_unsloth; else peft+=("$mode"); fi
    done
    # On a machine that others use too, several rounds in turns spread a busy minute over both sides.
    for ((round = 1; round <= ${ROUNDS:-1}; ++round)); do
      measure lorikeet "" build/bench/bench_step "${flags[@]}" "${ours[@]}"
      [ ${#peft[@]} = 0 ] || measure peft "${peft[*]}" "$python" bench/peers/lora_step.py "${flags[@]}" "${theirs[@]}" \
        --modes "$(IFS=,; echo "${peft[*]}")"
      [ -z "$unsloth" ] || measure unsloth "" env PYTHONPATH="$unsloth_path" "$python" bench/peers/lora_step.py "${flags[@]}" "${theirs[@]}" --modes unsloth
    done
  done
done
python3 bench/table.py "$result.jsonl" "One LoRA step on a ${device^^}" >"$result.md"
cat "$result.md"
