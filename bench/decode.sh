#!/usr/bin/env bash
# Generation on the CPU compared with llama.cpp on the same GGUF file: tokens/s of a prompt and of the tokens after it.
# usage: bash bench/decode.sh MODEL.gguf [PYTHON]     PYTHON has llama-cpp-python; without it Lorikeet is timed alone
# Prints a Markdown table. Both sides take turns, ROUNDS times (3); the best of each counts, as other programs only slow
# it down. TOKENS=64 are generated after a prompt of REPEAT=25 sentences (10 tokens each).
source "$(dirname "$0")/../tools/common.sh"

model=${1:-}
[ -n "$model" ] || die "usage: bash bench/decode.sh MODEL.gguf [PYTHON]"
python=${2:-} rounds=${ROUNDS:-3} tokens=${TOKENS:-64}
generate=${GENERATE:-build/tools/generate}
prompt=$(for _ in $(seq "${REPEAT:-25}"); do printf 'The quick brown fox jumps over the lazy dog. '; done)

ours() { # NAME ARGUMENTS...
  local name=$1
  shift
  "$generate" --model "$model" --device cpu --prompt "$prompt" --max-tokens "$tokens" --json "$@" | NAME=$name python3 -c '
import json, os, sys
row = json.loads(sys.stdin.readline())
print(json.dumps({"name": os.environ["NAME"], "prompt": row["prompt_tokens"],
                  "prefill": row["prefill_tokens_per_second"], "decode": row["tokens_per_second"]}))'
}

lines=$(mktemp)
trap 'rm -f "$lines"' EXIT
for _ in $(seq "$rounds"); do
  ours "Lorikeet, quantised as stored" --weights quantised >>"$lines"
  ours "Lorikeet, f32" --weights dense --dtype f32 >>"$lines"
  if [ -n "$python" ]; then
    n=$(python3 -c 'import json, sys; print(json.loads(sys.stdin.readline())["prompt"])' <"$lines")
    "$python" bench/peers/llama_cpp_speed.py --model "$model" --prompt-tokens "$n" --tokens "$tokens" --repeat 1 |
      sed 's/^{/{"name": "llama.cpp", /' >>"$lines"
  fi
done
MODEL=$(basename "$model") TOKENS=$tokens python3 - "$lines" <<'EOF'
import json, os, sys

rows = [json.loads(line) for line in open(sys.argv[1])]
best = {}
for row in rows:
    b = best.setdefault(row["name"], {"prefill": 0, "decode": 0})
    for key in b:
        b[key] = max(b[key], row[key])
peer = best.get("llama.cpp")
print(f"{os.environ['MODEL']}, a prompt of {rows[0]['prompt']} tokens, then {os.environ['TOKENS']} one by one, "
      f"{len(os.sched_getaffinity(0))} cores\n")
print("| | prefill tokens/s | decode tokens/s |" + (" by llama.cpp: prefill | decode |" if peer else ""))
print("|---|---|---|" + ("---|---|" if peer else ""))
for name, b in best.items():
    ratios = f" {b['prefill'] / peer['prefill']:.2f} x | {b['decode'] / peer['decode']:.2f} x |" if peer else ""
    print(f"| {name} | {b['prefill']:.1f} | {b['decode']:.1f} |{ratios}")
EOF
