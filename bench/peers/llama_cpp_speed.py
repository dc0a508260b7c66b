"""Speed of llama.cpp on a GGUF file: tokens/s of a prompt and of single tokens after it, one JSON line.

    python llama_cpp_speed.py --model MODEL.gguf --prompt-tokens 256 --tokens 64 [--threads N] [--repeat 3]

Needs llama-cpp-python. Ids are arbitrary: the time does not depend on them. The best of the repeats counts.
"""
import argparse
import json
import os
import time

import llama_cpp

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--prompt-tokens", type=int, required=True)
parser.add_argument("--tokens", type=int, required=True)
parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
parser.add_argument("--repeat", type=int, default=3)
args = parser.parse_args()

model = llama_cpp.Llama(args.model, n_ctx=args.prompt_tokens + args.tokens, n_batch=512, n_threads=args.threads,
                        n_threads_batch=args.threads, verbose=False)
prompt = [100 + 7 * i % 4000 for i in range(args.prompt_tokens)]
prefill, decode = [], []
for _ in range(args.repeat):
    model.reset()
    start = time.perf_counter()
    model.eval(prompt)
    prefill.append(time.perf_counter() - start)
    start = time.perf_counter()
    for i in range(args.tokens):
        model.eval([200 + i])
    decode.append(time.perf_counter() - start)
print(json.dumps({"prefill": args.prompt_tokens / min(prefill), "decode": args.tokens / min(decode)}))
