#!/usr/bin/env python3
"""Attention beside cuDNN's, which PyTorch calls, by turns on one card: a table of useful TFLOP/s.

    python3 bench/attention.py [--build DIR] [--rounds 2] [--only 'D128'] [--seconds 240]     needs torch, and a GPU

Causal, bfloat16, 2,048 columns of 16,384 tokens (32,768 for the longest document), as bench_cuda_kernels has them. Useful are
half of T x T pairs, in two products forward and five backward; our backward includes delta and the rounding of dq. Each figure
is the best of the rounds. Where cuDNN has no kernel there is a dash.
"""

import argparse
import csv
import io
import os
import re
import subprocess
import sys
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

COLUMNS, TOKENS = 2048, 16384
HEAD_SIZES, LENGTHS = (64, 128, 256), (512, 2048, 8192, 32768)
PASSES = {"forward": 2, "backward": 5}  # products


def cases(only):
    for size in HEAD_SIZES:
        for length in LENGTHS if size < 256 else LENGTHS[:-1]:
            heads, documents = COLUMNS // size, max(1, TOKENS // length)
            name = f"attention_bf16_H{heads}_G{heads}_D{size}_{documents}x{length}"
            if re.search(only, name):
                yield name, heads, size, documents, length


def tflops(case, what, seconds):
    _, heads, size, documents, length = case
    return PASSES[what] * documents * heads * size * length * length / seconds / 1e12


def ours(case, program):
    """Seconds of both passes."""
    done = subprocess.run(
        [program, f"--benchmark_filter=^{case[0]}_(forward|backward)", "--benchmark_min_time=0.03", "--benchmark_format=csv"],
        capture_output=True, text=True, check=True)
    found = {}
    for row in csv.DictReader(io.StringIO(done.stdout[done.stdout.index("name,"):])):
        what = re.match(case[0] + "_(forward|backward)", row["name"])
        found[what[1]] = float(row["real_time"]) / 1e9
    return found


def seconds_of(run, times=6):
    """The median of some runs, by the device's clock."""
    run()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in zip(marks, marks[1:]))[times // 2] / 1e3


def cudnn(case):
    _, heads, size, documents, length = case
    torch.manual_seed(1)
    q, k, v = (torch.randn(documents, length, heads, size, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
               .requires_grad_() for _ in range(3))
    found = {}
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        attend = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        try:
            with torch.no_grad():
                found["forward"] = seconds_of(attend)
            out = attend()
            dout = torch.randn_like(out)
            found["backward"] = seconds_of(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))
        except RuntimeError as error:
            print(f"  cuDNN, {case[0]}: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build", help="the folder with bench/bench_cuda_kernels")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default="", metavar="PATTERN", help="a regular expression that a case's name contains")
    parser.add_argument("--seconds", type=float, default=0, help="begin nothing after so many (0: no limit)")
    args = parser.parse_args()
    program = os.path.join(args.build, "bench", "bench_cuda_kernels")
    begin, best = time.monotonic(), {}
    chosen = list(cases(args.only))
    for n in range(args.rounds):
        for case in chosen:
            if args.seconds and time.monotonic() - begin > args.seconds:
                break
            print(f"round {n + 1} of {args.rounds}: {case[0]}", file=sys.stderr, flush=True)
            for side, found in (("ours", ours(case, program)), ("cudnn", cudnn(case))):
                for what, seconds in found.items():
                    key = case, what, side
                    best[key] = max(best.get(key, 0.0), tflops(case, what, seconds))
    print(f"{torch.cuda.get_device_name()}, cuDNN {torch.backends.cudnn.version()}: TFLOP/s, ours / cuDNN\n")
    print("| head size | documents | forward | | backward | |\n|---:|---|---:|---:|---:|---:|")
    for case in chosen:
        cells = []
        for what in PASSES:
            mine, its = (best.get((case, what, side)) for side in ("ours", "cudnn"))
            cells += [f"{mine:.0f} / {its:.0f}" if mine and its else f"{mine:.0f} / -" if mine else "-",
                      f"{mine / its:.2f}" if mine and its else ""]
        print(f"| {case[2]} | {case[3]} x {case[4]} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
