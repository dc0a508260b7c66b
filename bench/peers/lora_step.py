"""Time and memory of one LoRA training step of a peer, on a CPU or a CUDA device: one JSON line for each mode.

    python bench/peers/lora_step.py --shape llama2-7b --batch 4 --seq-len 2048 --rank 16 --dtype bf16 --device cuda \\
                                    --modes eager,compile-layer,graph

The flags are those of build/bench/bench_step. Modes, in one process on one model:
  eager          PyTorch + PEFT as they are
  compile-layer  torch.compile of each decoder layer
  graph          torch.compile of the whole model, mode "reduce-overhead": CUDA graphs, static inputs
  unsloth        Unsloth's model (it changes transformers when imported, so it must be the only mode)
A mode that fails prints a line with "error" and the next one runs; the exit code is 0.

Rows of unequal lengths (--shortest) run padded to the longest, or packed into one row with positions that restart
(--packed). With --serve each line of stdin is a JSON object of flags that stand in place of those given, such as
{"seq_len": 512}; a model is built once for all cases that share it.
`device_peak_bytes` is the peak of live tensors while stepping, `device_reserved_bytes` what the allocator held.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import sys
import time
import traceback

START = time.perf_counter()
MODES = ("eager", "compile-layer", "graph", "unsloth")


def parser_of_flags():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="smollm2-135m", help="a shape of shapes.py")
    parser.add_argument("--config", default="", help="a model's config.json instead")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--shortest", type=int, default=0, help="rows of so many tokens to --seq-len, evenly spread")
    parser.add_argument("--packed", action="store_true", help="those rows one behind the other, instead of padded")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", default="all-linear", help="all-linear or q_proj,v_proj,...")
    parser.add_argument("--dtype", default="f32", choices=("f32", "bf16"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--modes", default="eager", help=f"comma list of {', '.join(MODES)}")
    parser.add_argument("--dropout", type=float, default=0.0, help="on the adapter's input")
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing by layer")
    parser.add_argument(
        "--f32-adapters", action="store_true",
        help="float32 adapters under autocast, PEFT's default, in bf16 too; without it they are bfloat16 (faster)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--serve", action="store_true", help="take cases from stdin")
    return parser


def modes_of(parser, args):
    modes = args.modes.split(",")
    unknown = [m for m in modes if m not in MODES]
    if unknown:
        parser.error(f"--modes: unknown {', '.join(unknown)}")
    if "unsloth" in modes and len(modes) > 1:
        parser.error("--modes: unsloth needs a process of its own")
    return modes


def versions():
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "peft", "unsloth"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def row_lengths(args):
    """Those of build/bench/bench_step --shortest."""
    if not args.shortest or args.batch == 1:
        return [args.seq_len] * args.batch
    return [args.shortest + (args.seq_len - args.shortest) * i // (args.batch - 1) for i in range(args.batch)]


def make_batch(args, torch, vocab_size):
    """What forward() takes. Padding comes last, where causal attention needs no mask for it: its labels are left out."""
    lengths = row_lengths(args)
    shape = (1, sum(lengths)) if args.packed else (args.batch, args.seq_len)
    ids = torch.randint(3, vocab_size, shape, device=args.device)
    labels = ids.clone()
    if not args.packed:
        for row, length in enumerate(lengths):
            labels[row, length:] = -100
        return dict(input_ids=ids, labels=labels)
    positions = torch.cat([torch.arange(n, device=args.device) for n in lengths])[None]
    labels[positions == 0] = -100
    return dict(input_ids=ids, labels=labels, position_ids=positions)


def measure(args, torch, peer, mode):
    """Times the steps of `peer`, a dict of parameters, forward and autocast; returns the line's numbers."""
    on_gpu = args.device == "cuda"
    synchronize = torch.cuda.synchronize if on_gpu else lambda: None
    parameters = peer["parameters"]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=on_gpu)
    torch.manual_seed(1)
    batch, tokens = make_batch(args, torch, peer["vocab_size"]), sum(row_lengths(args))

    def step():
        if mode == "graph" and on_gpu:
            torch.compiler.cudagraph_mark_step_begin()
        with peer["autocast"]():
            loss = peer["forward"](**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()  # every engine reads its loss

    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds, losses, first_step, begin = [], [], 0.0, time.perf_counter()
    for i in range(args.warmup + args.steps):
        synchronize()
        start = time.perf_counter()
        losses.append(step())
        synchronize()
        if i == 0:
            first_step = peer["build_seconds"] + time.perf_counter() - begin
        if i >= args.warmup:
            seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    result = dict(
        step_seconds=median, step_seconds_min=min(seconds), step_seconds_max=max(seconds),
        tokens_per_second=tokens / median, tokens=tokens, first_step_seconds=first_step,
        first_loss=losses[0], last_loss=losses[-1], trainable=sum(p.numel() for p in parameters))
    if on_gpu:
        result["device_peak_bytes"] = torch.cuda.max_memory_allocated()
        result["device_reserved_bytes"] = torch.cuda.max_memory_reserved()
    return result


def reason(error):
    """One line of the error's text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def run_mode(args, mode, peer):
    """The JSON line of one mode, and the peer it ran on: `peer`, or a new one if that is None."""
    line = dict(
        engine="unsloth" if mode == "unsloth" else "peft", mode="" if mode == "unsloth" else mode,
        shape=args.config or args.shape, device=args.device, dtype=args.dtype, batch=args.batch,
        seq_len=args.seq_len, shortest=args.shortest, packed=args.packed, rank=args.rank, targets=args.targets,
        dropout=args.dropout, recompute="layer" if args.recompute else "none", versions=versions())
    try:
        if mode == "unsloth":
            import unsloth_model as builder  # before torch and transformers, which it changes
        else:
            import peft_model as builder
        import torch

        torch.set_num_threads(args.threads)
        if args.device == "cuda":
            line["description"] = torch.cuda.get_device_name()
        if peer is None:
            peer = builder.build(args)
            peer["build_seconds"] = time.perf_counter() - START
        builder.set_mode(peer, mode)
        line.update(measure(args, torch, peer, mode))
    except Exception as error:  # any failure of a peer is a row of the table, not the end of it
        traceback.print_exc()
        line["error"] = reason(error)
    # After the except: the exception's frames hold the activations of a step that did not fit.
    gc.collect()
    line["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return line, peer


def same_model(a, b):
    keys = ["shape", "config", "rank", "targets", "dropout", "dtype", "recompute"]
    if "unsloth" in (a.modes, b.modes):
        keys += ["modes", "seq_len"]  # its models are made for a length
    return all(getattr(a, key) == getattr(b, key) for key in keys)


def main():
    parser = parser_of_flags()
    args = parser.parse_args()
    # Libraries print to stdout as they please; JSON goes to the real one, all else to stderr.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    cases = (argparse.Namespace(**{**vars(args), **json.loads(line)}) for line in sys.stdin) if args.serve else [args]
    peer = built_for = None
    for case in cases:
        if built_for and not same_model(case, built_for):
            peer = None  # before the next is built: its memory is free then
            gc.collect()
        built_for = case
        for mode in modes_of(parser, case):
            line, peer = run_mode(case, mode, peer)
            print(json.dumps(line), file=out, flush=True)


if __name__ == "__main__":
    main()
