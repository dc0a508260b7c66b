#!/usr/bin/env bash
# From a fresh Debian 12 to a fine-tuned model: bash tools/demo.sh
# 8 to 12 minutes on two cores, by processor, build included; under 4 once built. Writes into runs/demo-<time>/.
source "$(dirname "$0")/common.sh"

steps=${1:-60}
[[ $steps =~ ^[1-9][0-9]*$ ]] || die "usage: bash tools/demo.sh [STEPS]"
out=runs/demo-$(date +%Y%m%d-%H%M%S)

install_packages $BUILD_PACKAGES
fetch_model || die "the base model could not be fetched: is there a network?"
build_programs || die "the build failed; see above"

say "Fine-tuning SmolLM2-135M with LoRA: restaurant facts -> a sentence, $steps steps of 8 rows"
train=(build/tools/finetune --model "$MODEL" --data examples/data/e2e_train.jsonl --out "$out"
  --rank 8 --alpha 16 --targets all-linear --steps "$steps" --batch 8 --seq-len 256 --lr 5e-4 --no-shuffle
  --eval-data examples/data/e2e_test.jsonl --eval-rows 64)
echo "${train[*]}" >&2
"${train[@]}"

say "Three prompts that it never saw: the base model, then the same model with the adapter"
# Rows far apart, so that the three restaurants differ.
sed -n '40p;250p;480p' examples/data/e2e_test.jsonl >"$out/prompts.jsonl"
answers() { build/tools/generate --model "$MODEL" --prompts "$out/prompts.jsonl" --max-tokens 48 --json "$@"; }
answers >"$out/base.jsonl"
answers --adapter "$out" >"$out/adapted.jsonl"
python3 - "$out" <<'PYTHON'
import json, sys, textwrap
folder = sys.argv[1]
read = lambda name: [json.loads(line) for line in open(f"{folder}/{name}.jsonl", encoding="utf-8")]
for prompt, base, adapted in zip(read("prompts"), read("base"), read("adapted")):
    print(f"\n{prompt['prompt'].splitlines()[0]}")
    for who, text in ("base", base["text"]), ("adapter", adapted["text"]), ("a person", prompt["completion"]):
        print(textwrap.fill(" ".join(text.split()), 100, initial_indent=f"  {who:>8}: ", subsequent_indent=" " * 12))
PYTHON

cat <<END

The adapter is in $out (PEFT's format). What to try next:
  build/tools/generate --model $MODEL --adapter $out --prompt \$'Restaurant facts: name : The Mill | food : Italian\nSentence:'
  build/tools/evaluate --model $MODEL --adapter $out --data examples/data/e2e_test.jsonl
  build/tools/plan --shape llama2-7b --batch 4 --seq-len 2048
  build/tools/finetune --help
END
