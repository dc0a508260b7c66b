#!/usr/bin/env python3
"""The core that a reader of the engine visits first, and its budget of lines: count_core.py [ROOT]

Numbers in memory, the plain CPU, the tape, a block and LoRA: every line of these files counts, comments too. Fast paths,
files of models, text, generation and runs are not part of it. Exits 1 if the core is over its budget or a name is stale.
"""
import pathlib
import sys

BUDGET = 6000
CORE = {
    "tensor": ["src/tensor/*.h", "src/tensor/*.cpp"],
    "cpu": ["src/cpu/*.h", "src/cpu/*.cpp"],
    "autograd": ["src/autograd/*.h", "src/autograd/*.cpp", "src/autograd/ops/*"],
    "nn": ["src/nn/linear_map.h", "src/nn/block.*", "src/nn/transformer.*", "src/nn/model_weights.*", "src/nn/batch.*",
           "src/nn/config.*", "src/nn/rope_table.cpp", "src/nn/adamw.*", "src/nn/schedule.*"],
    "lora": ["src/lora/lora_linear.*", "src/lora/adapter.*", "src/lora/train_step.*", "src/lora/proof.*"],
}


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent)
    total, stale = 0, []
    for layer, patterns in CORE.items():
        lines = 0
        for pattern in patterns:
            files = [f for f in root.glob(pattern) if f.is_file()]
            stale += [] if files else [pattern]
            lines += sum(len(f.read_text(encoding="utf-8").splitlines()) for f in files)
        print(f"{layer:10} {lines:6}")
        total += lines
    print(f"{'core':10} {total:6} of {BUDGET}")
    print("".join(f"{pattern}: no such file\n" for pattern in stale), end="")
    failed = total > BUDGET or bool(stale)
    print(f"lorikeet-tests: {int(not failed)} passed, {int(failed)} failed, 0 skipped")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
