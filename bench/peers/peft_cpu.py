"""Time of one LoRA training step with PyTorch + PEFT on the CPU: one JSON line.

    python bench/peers/peft_cpu.py --shape smollm2-135m --batch 2 --seq-len 256 --rank 8 --dtype f32 --steps 10

The flags are those of build/bench/bench_step; --mode adds compile.
"""

import argparse
import json
import os
import resource

import torch

import peft_step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peft_step.add_arguments(parser)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = peft_step.measure(args, "cpu", synchronize=lambda: None, fused=False)
    result["device"] = "cpu"
    result["threads"] = args.threads
    result["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
