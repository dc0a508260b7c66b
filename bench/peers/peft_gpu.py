"""Time and memory of one LoRA training step with PyTorch + PEFT on a CUDA device: one JSON line.

    python bench/peers/peft_gpu.py --shape llama2-7b --batch 4 --seq-len 2048 --rank 16 --dtype bf16 --mode compile

The flags are those of build/bench/bench_step; --mode takes eager, compile, graph, recompute, fp32ad.
`device_peak_bytes` is the peak of live tensors, `device_reserved_bytes` what PyTorch's allocator took from the driver.
A case that does not fit prints {"error": "out of memory"} and its settings.
"""

import argparse
import json

import torch

import peft_step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peft_step.add_arguments(parser)
    args = parser.parse_args()
    torch.cuda.reset_peak_memory_stats()
    try:
        result = peft_step.measure(args, "cuda", synchronize=torch.cuda.synchronize, fused=True)
    except torch.OutOfMemoryError:
        result = dict(engine="peft", **vars(args), error="out of memory")
    result["device"] = "cuda"
    result["description"] = torch.cuda.get_device_name()
    result["device_peak_bytes"] = torch.cuda.max_memory_allocated()
    result["device_reserved_bytes"] = torch.cuda.max_memory_reserved()
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
