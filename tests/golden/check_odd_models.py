"""Random models of odd sizes with random settings, on a GPU and a CPU: check_odd_models.py BUILD [--device cuda] [--seconds 120]
[--seed 1] [--models FOLDER]

transformers makes tiny models of six families whose widths, heads, windows and vocabularies suit no kernel; finetune trains each
with settings drawn at random. On a GPU a run in float32 must have the CPU's last loss, one in bfloat16 must be near it, two of
those must leave the same bytes, and generate must answer with the CPU's text; with --device cpu the two dtypes are compared. The
planned peak is within 2 % of the measured one in every run, and what one run refuses all refuse. Prints each case that broke a
promise, with its flags, and counts; exits 1 if there was one. --models keeps the models, or takes those of an earlier call, so that
the machine with the GPU needs no transformers.
"""

import argparse
import collections
import concurrent.futures
import filecmp
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

TINY = pathlib.Path(__file__).parent / "peft" / "tiny"
ROWS = TINY.parent / "rows.jsonl"
ALWAYS = "--steps 5 --lr 1e-3 --save-every 0 --eval-split 0 --samples 0"


def make_model(rng, folder):
    import torch
    import transformers as hf

    one = rng.choice
    head_dim = one([2, 4, 6, 8, 12, 16, 20, 32, 34, 40, 48, 64, 72, 80, 96, 112, 128, 160, 192, 256])
    kv_heads = one([1, 1, 2, 3])
    heads = kv_heads * one([1, 2, 3, 5])
    inner = one([17, 32, 53, 64, 88, 96, 120, 130, 256, 344])
    shared = {"vocab_size": one([300, 301, 305, 320, 384, 511, 1000]), "num_hidden_layers": one([1, 2, 2, 3, 5]),
              "max_position_embeddings": one([128, 256, 512]), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
              "tie_word_embeddings": rng.random() < 0.5}
    width = heads * max(1, one([16, 24, 33, 40, 56, 64, 72, 100, 104, 128, 136, 200]) // heads)  # transformers wants a multiple
    llama = shared | {"hidden_size": width, "intermediate_size": inner, "num_attention_heads": heads,
                      "num_key_value_heads": kv_heads, "head_dim": head_dim, "rope_theta": one([1e4, 5e5])}
    family = one(["llama", "mistral", "qwen2", "qwen3", "gemma3", "gpt2"])
    if family == "llama":
        config = hf.LlamaConfig(attention_bias=rng.random() < 0.3, mlp_bias=rng.random() < 0.3, **llama)
    elif family == "mistral":
        config = hf.MistralConfig(sliding_window=one([None, 7, 30, 64]), **llama)
    elif family == "qwen2":  # its heads are as wide together as the model
        head_dim = min(head_dim, 40)
        del llama["head_dim"]
        config = hf.Qwen2Config(**llama | {"hidden_size": heads * head_dim})
    elif family == "qwen3":
        config = hf.Qwen3Config(attention_bias=rng.random() < 0.2, **llama)
    elif family == "gemma3":
        config = hf.Gemma3TextConfig(sliding_window=one([16, 64]), query_pre_attn_scalar=one([head_dim, 24]), **llama)
    else:
        heads = one([1, 2, 3, 4])
        config = hf.GPT2Config(vocab_size=shared["vocab_size"], n_positions=shared["max_position_embeddings"],
                               n_embd=heads * one([6, 16, 20, 32, 40, 64]), n_layer=shared["num_hidden_layers"], n_head=heads,
                               n_inner=one([None, inner]), bos_token_id=1, eos_token_id=2)
    torch.manual_seed(rng.randrange(2**31))
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(one([1, 2, 4]))
    model.to(one([torch.bfloat16, torch.bfloat16, torch.float16, torch.float32])).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder)


def draw_flags(rng, gpt2):
    one, often = rng.choice, lambda share: rng.random() < share
    method = one(["lora"] * 7 + ["full", "bottleneck", "prompt", "prefix", "bitfit", "ia3", "lora,prefix", "llama-adapter"])
    flags = [f"--method {method} --batch {one([1, 2, 3, 5, 8])} --seq-len {one([64, 65, 100, 128])}"]
    if method.startswith("lora"):
        flags.append(f"--rank {one([1, 2, 3, 5, 8, 12, 16, 17, 33])}")
        targets = ["c_attn"] if gpt2 else ["q_proj,v_proj", "o_proj", "down_proj", "gate_proj,k_proj", "up_proj"]
        flags += [flag for share, flag in [(0.3, f"--dropout {one([0.05, 0.3])}"), (0.2, "--dora"), (0.2, "--rslora"),
                                           (0.3, f"--targets {one(targets)}"), (0.2, "--loraplus-ratio 8"),
                                           (0.15, f"--init {one(['pissa', 'olora', 'gaussian'])}")] if often(share)]
    if "prompt" in method or "prefix" in method:
        flags.append(f"--virtual-tokens {one([1, 3, 9])}")
    flags += [flag for share, flag in [(0.3, f"--grad-accum {one([2, 3])}"), (0.25, "--packing"), (0.2, "--clip 0"),
                                       (0.2, "--label-smoothing 0.1")] if often(share)]
    if method != "full":
        again = ["block", "gate-up", "keep-attention", "block:1", "gate-up,block:1"]
        flags += [flag for share, flag in [(0.4, f"--recompute {one(again)}"),
                                           (0.3, f"--base-precision {one(['nf4', 'fp4', 'fp8'])}")] if often(share)]
    return " ".join(flags + [ALWAYS])


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, errors="replace", timeout=120)
    return done.returncode, done.stdout, done.stderr


def train(tools, model, flags, out, device, dtype):
    status, _, errors = run(tools / "finetune", "--model", model, "--data", ROWS, *flags.split(), "--out", out, "--device", device,
                            "--dtype", dtype)
    if status != 0:
        return {"status": status, "says": errors.strip().splitlines()[-1:]}
    told = json.loads((out / "run.json").read_text())
    return {"status": 0, "loss": told["result"]["last_loss"],
            "plan": told["planned_peak_bytes"] / told["result"]["peak_bytes"]}


def near(a, b, share):
    return abs(a["loss"] - b["loss"]) <= share * abs(a["loss"])


def broken_promises(tools, model, flags, scratch, gpu, generates):
    """A list of what was not as it must be, and the runs."""
    kinds = {"cpu f32": ("cpu", "f32")}
    bf16 = ("cuda" if gpu else "cpu", "bf16")
    kinds |= {"gpu f32": ("cuda", "f32"), "bf16": bf16, "bf16 again": bf16} if gpu else {"bf16": bf16}
    runs = {name: train(tools, model, flags, scratch / name, *kind) for name, kind in kinds.items()}
    states = {r["status"] for r in runs.values()}
    if states != {0}:  # 7: a window may hide virtual tokens from all that is trained
        return [] if len(states) == 1 and states <= {2, 3, 7} else ["exit codes"], runs
    bad = [f"plan of {name}" for name, r in runs.items() if not 0.98 <= r["plan"] <= 1.02]
    if not near(runs["cpu f32"], runs["bf16"], 0.05):
        bad.append("loss in bf16")
    if gpu:
        if not near(runs["cpu f32"], runs["gpu f32"], 2e-4):
            bad.append("loss in f32")
        for file in (scratch / "bf16").rglob("*.safetensors"):
            other = scratch / "bf16 again" / file.relative_to(scratch / "bf16")
            if file.name != "checkpoint.safetensors" and not filecmp.cmp(file, other, shallow=False):
                bad.append(f"bytes of {file.name}")
        if generates:
            texts = [run(tools / "generate", "--model", model, "--adapter", scratch / "gpu f32", "--prompt", "Animal: owl",
                         "--max-tokens", 12, "--device", device, "--dtype", "f32")[:2] for device in ("cpu", "cuda")]
            if texts[0] != texts[1]:
                bad.append("text")
    return bad, runs


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=40, help="models to make")
    parser.add_argument("--models", type=pathlib.Path)
    args = parser.parse_args()
    end, counts = time.monotonic() + args.seconds, collections.Counter()
    with tempfile.TemporaryDirectory() as scratch:
        models = args.models or pathlib.Path(scratch) / "models"
        if not models.exists():
            for i in range(args.count):
                make_model(random.Random(f"{args.seed} {i}"), models / f"{i:03}")
        folders = sorted(models.iterdir())

        def case(k):
            if time.monotonic() > end:
                return
            rng = random.Random(f"{args.seed} case {k}")
            model = rng.choice(folders)
            gpt2 = json.loads((model / "config.json").read_text())["model_type"] == "gpt2"
            flags = draw_flags(rng, gpt2)
            own = pathlib.Path(scratch) / str(k)
            bad, runs = broken_promises(args.build / "tools", model, flags, own, args.device == "cuda",
                                        "--method full" not in flags and rng.random() < 0.5)
            shutil.rmtree(own, ignore_errors=True)
            counts["broken" if bad else "right" if runs["bf16"]["status"] == 0 else "refused"] += 1
            if bad:
                print(f"{model.name}: {', '.join(bad)}\n  finetune {flags}\n  {runs}", flush=True)

        with concurrent.futures.ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // 2)) as pool:
            list(pool.map(case, range(10_000)))
    print(", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    return int(counts["broken"] > 0 or counts["right"] == 0)


if __name__ == "__main__":
    sys.exit(main())
