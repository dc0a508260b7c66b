"""PyTorch's DistributedDataParallel around the compiled PEFT model, a process a GPU: one JSON line for one card, one for all.

    python -m torch.distributed.run --nproc-per-node 2 bench/peers/ddp_step.py --shape llama2-7b --batch 4 --seq-len 2048 \\
        --rank 16 --dtype bf16 --device cuda --modes compile-layer

The flags are those of lora_step.py, for each card. The line for one card is timed while the others do the same alone.
"""

import json
import os
import sys
import time

import torch
import torch.distributed

import lora_step
import peft_model


def main():
    parser = lora_step.parser_of_flags()
    args = parser.parse_args()
    (mode,) = lora_step.modes_of(parser, args)
    on_gpu = args.device == "cuda"
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    begin = time.perf_counter()
    peer = peft_model.build(args)
    peer["build_seconds"] = time.perf_counter() - begin
    peft_model.set_mode(peer, mode)
    for processes in sorted({1, size}):
        if processes > 1:
            devices = [torch.cuda.current_device()] if on_gpu else None
            peer["forward"] = torch.nn.parallel.DistributedDataParallel(peer["forward"], device_ids=devices)
        torch.distributed.barrier()
        line = dict(engine="ddp", mode=mode, shape=args.config or args.shape, processes=processes, batch=args.batch,
                    seq_len=args.seq_len, rank=args.rank, dtype=args.dtype, device=args.device, versions=lora_step.versions())
        line.update(lora_step.measure(args, torch, peer, mode))
        line["tokens_per_second"] *= processes
        if rank == 0:
            print(json.dumps(line), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    main()
