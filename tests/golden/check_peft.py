"""Checks adapters in both directions against Hugging Face PEFT, on the tiny model. Needs torch, transformers, peft.

    python check_peft.py BUILD     BUILD: the build folder, e.g. build

Ours to PEFT: finetune trains an adapter; PEFT loads it, every tensor is used, and with it transformers has the same
evaluation loss as our evaluate program and continues a prompt with the same tokens as our generate program.
PEFT to ours: the adapter that PEFT trained (peft/<case>.after) gives the same loss in our evaluate program, and
--init-adapter goes on from it with the losses that PEFT computes.
Prints a line a check and ends with their number; exits 1 if one failed.
"""

import json
import math
import pathlib
import subprocess
import sys
import tempfile

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file

import make_peft_golden as golden

HERE = pathlib.Path(__file__).parent
MODEL = HERE / "peft" / "tiny"
ROWS = HERE / "peft" / "rows.jsonl"
results = []


def check(what, good, detail=""):
    results.append(good)
    print(f"{'ok' if good else 'FAILED'}: {what} {detail}", flush=True)


def close(what, ours, theirs, relative=2e-6):
    check(what, math.isclose(ours, theirs, rel_tol=relative), f"(ours {ours:.9g}, PEFT {theirs:.9g})")


def run(program, *arguments):
    command = [str(program), *map(str, arguments), "--device", "cpu", "--dtype", "f32"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def base():
    return transformers.LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager")


def with_adapter(folder):
    return PeftModel.from_pretrained(base(), folder, is_trainable=True)


def main(build):
    tools = pathlib.Path(build).resolve() / "tools"
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    rows = golden.read_rows(ROWS, tokenizer)
    prompt = json.loads(ROWS.read_text(encoding="utf-8").splitlines()[0])["prompt"]

    def our_loss(folder):
        return json.loads(run(tools / "evaluate", "--model", MODEL, "--adapter", folder, "--data", ROWS,
                              "--seq-len", 128))["loss"]

    for targets, rank, alpha, *variant in (
        ("all-linear", 8, 16), ("q_proj,v_proj,down_proj", 3, 8), ("o_proj", 1, 0.5),
        ("all-linear", 4, 8, "--rslora"), ("all-linear", 4, 8, "--dora"),
        ("all-linear", 4, 8, "--dora", "--rslora", "--dropout", 0.1), ("all-linear", 4, 8, "--init", "pissa"),
        ("all-linear", 4, 8, "--init", "olora", "--rslora"), ("q_proj,v_proj", 4, 8, "--layers", 1),
        ("all-linear", 4, 8, "--rank-pattern", "v_proj=2,layers.0.*=3", "--alpha-pattern", "down_proj=5"),
        ("all-linear", 4, 8, "--init", "gaussian", "--loraplus-ratio", 8)):
        with tempfile.TemporaryDirectory() as scratch:
            out = pathlib.Path(scratch) / "adapter"
            name = " ".join([f"{targets} rank {rank} alpha {alpha}", *map(str, variant)])
            run(tools / "finetune", "--model", MODEL, "--data", ROWS, "--out", out, "--rank", rank, "--alpha", alpha,
                "--targets", targets, "--steps", 8, "--batch", 4, "--seq-len", 128, "--lr", 1e-2, *variant)
            model = with_adapter(out)
            ours = {k: v for k, v in load_file(out / "adapter_model.safetensors").items()}
            theirs = {
                golden.file_name(k).replace("magnitude_vector.weight", "magnitude_vector"): v
                for k, v in model.named_parameters() if v.requires_grad}
            check(f"{name}: PEFT uses every tensor of ours", ours.keys() == theirs.keys() and all(
                torch.equal(ours[k], theirs[k].detach()) for k in ours))
            close(f"{name}: loss of our adapter", our_loss(out), golden.evaluate(model, rows))
            answer = json.loads(run(tools / "generate", "--model", MODEL, "--adapter", out, "--prompt", prompt,
                                    "--max-tokens", 12, "--json"))
            ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
            theirs = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
            wanted = [t for t in theirs[0, ids.shape[1] :].tolist() if t != tokenizer.eos_token_id]
            got = [t for t in answer["ids"] if t != tokenizer.eos_token_id]
            check(f"{name}: greedy continuation", got == wanted, f"({got} and {wanted})")

    for name, case in golden.TINY_CASES.items():
        folder = HERE / "peft" / f"{name}.after"
        model = with_adapter(folder)
        close(f"{name}: loss of PEFT's adapter", our_loss(folder), golden.evaluate(model, rows))
        more = {**case, "steps": 5, "schedule": "constant", "warmup": 0}
        theirs = golden.train(model, more, rows, rows[:1])["losses"]
        with tempfile.TemporaryDirectory() as scratch:
            out = pathlib.Path(scratch) / "adapter"
            run(tools / "finetune", "--model", MODEL, "--data", ROWS, "--out", out, "--init-adapter", folder, "--steps", 5,
                "--batch", case["batch"], "--grad-accum", case["grad_accum"], "--lr", case["lr"], "--clip", case["clip"],
                "--weight-decay", case["weight_decay"], "--seq-len", 128, "--no-shuffle")
            lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            ours = [line["loss"] for line in lines if "loss" in line]
        for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            close(f"{name}: going on from it, step {k + 1}", a, b, 5e-6)

    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
