#!/usr/bin/env python3
"""The core that a reader of the engine visits first, and its budget of lines: count_core.py [ROOT]

Numbers in memory, the plain CPU, the tape, a block and LoRA: every line counts that is not empty, comments too. Not part of
it: fast paths and the interfaces beside the core that serve them (joined projections, thin products, recording, generation),
files of models, text and runs. Exits 1 if the core is over its budget or a name is stale.
"""
import pathlib
import sys

BUDGET = 6000
CORE = {
    "tensor": ["dtype.h", "half.h", "shape.h", "tensor.*", "weight.h", "ledger.*", "block_cache.*", "backend.*", "segments.*",
               "attention_shape.h", "adamw_slot.h", "philox.h", "device_traits.h", "pass_key.h", "error.h"],
    "cpu": ["*.h", "*.cpp"],
    "autograd": ["parameter.*", "tape.*", "gradcheck.*", "ops.h", "work.h", "ops/attention.cpp", "ops/elementwise.cpp",
                 "ops/embedding.cpp", "ops/gated.cpp", "ops/linear.cpp", "ops/loss*", "ops/norm.cpp", "ops/optim.cpp",
                 "ops/rope.cpp"],
    "nn": ["linear_map.h", "block.*", "transformer.*", "model_weights.*", "batch.*", "config.h", "rope_table.cpp", "adamw.*",
           "schedule.*"],
    "lora": ["lora_linear.*", "adapter.*", "train_step.*", "proof.*"],
}
# Files of src/cpu/ that a device needs besides the definitions, and those that only methods beside LoRA need.
NOT_CORE = {"cpu/plan.cpp", "cpu/host_memory.h", "cpu/host_memory.cpp", "cpu/control_groups.h", "cpu/control_groups.cpp",
            "cpu/processors.h", "cpu/processors.cpp", "cpu/trained.cpp"}


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent)
    total, stale = 0, []
    for layer, patterns in CORE.items():
        lines = 0
        for pattern in patterns:
            files = [f for f in (root / "src" / layer).glob(pattern)
                     if f.is_file() and str(f.relative_to(root / "src")) not in NOT_CORE]
            stale += [] if files else [f"src/{layer}/{pattern}"]
            lines += sum(bool(line.strip()) for f in files for line in f.read_text(encoding="utf-8").splitlines())
        print(f"{layer:10} {lines:6}")
        total += lines
    print(f"{'core':10} {total:6} of {BUDGET}")
    print("".join(f"{pattern}: no such file\n" for pattern in stale), end="")
    failed = total > BUDGET or bool(stale)
    print(f"lorikeet-tests: {int(not failed)} passed, {int(failed)} failed, 0 skipped")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
