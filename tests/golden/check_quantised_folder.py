"""Checks the quantised folders that merge writes with the packages that will read them. Needs torch, bitsandbytes,
compressed-tensors, accelerate and transformers.

    python check_quantised_folder.py BUILD [MODEL]   BUILD: the build folder; MODEL: also this one, such as SmolLM2's GGUF

Of each type (nf4, fp4, fp8) of peft/tiny, of a random GPT-2 and of MODEL: every matrix as its package dequantises it equals,
bit for bit, what our own reader makes of it (merge --type f32 of the folder); bitsandbytes' own codes of the model in F32
differ in none; transformers loads the folder, and its logits are those of the dequantised model.
Prints a line a check, exits 1 if one failed, and writes quantised/written.safetensors: some matrices of peft/tiny with
all_linear.after merged into it, in each type, as the packages dequantise them.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import bitsandbytes.functional as bnb
import torch
import transformers
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).parent
GOLDEN = ["model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.k_proj.weight"]
torch.set_num_threads(2)
failed = 0


def check(name, ok, detail=""):
    global failed
    failed += not ok
    print("ok  " if ok else "FAIL", name, detail)


def merge(tools, model, out, *arguments):
    subprocess.run([tools / "merge", "--model", model, "--out", out, "--no-verify", *arguments], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def dequantised(folder, kind):
    """The folder's quantised matrices as the format's package dequantises them, and their stored tensors."""
    tensors = load_file(folder / "model.safetensors")
    values, parts = {}, {}
    if kind == "fp8":
        config = json.loads((folder / "config.json").read_text())["quantization_config"]
        arguments = QuantizationArgs(**config["config_groups"]["group_0"]["weights"])
        for name in [n.removesuffix("_scale") for n in tensors if n.endswith("_scale")]:
            values[name] = dequantize(tensors[name], tensors[name + "_scale"], args=arguments)
        return values, parts
    for key in [n for n in tensors if ".quant_state." in n]:
        name = key[: key.index(".quant_state.")]
        own = {k[len(name) + 1:]: v for k, v in tensors.items() if k.startswith(name + ".")}
        state = bnb.QuantState.from_dict(dict(own), device=torch.device("cpu"))
        shape, parts[name] = state.shape, (tensors[name], own, state)
        state.shape = torch.Size([1, shape.numel()])  # see quantise() in make_quantised_golden.py
        values[name] = bnb.dequantize_4bit(tensors[name], state).reshape(shape)
        state.shape = shape
    return values, parts


def logits(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for p in model.parameters():
        if p.dtype in (torch.bfloat16, torch.float16):
            p.data = p.data.float()
    for m in model.modules():
        if hasattr(m, "compute_dtype"):
            m.compute_dtype = torch.float32
    # With gradients: without them version 0.50 packs a layer's codes anew on some CPUs, and multiplies in BF16.
    return model.train()(torch.arange(3, 23)[None]).logits.detach()


def check_model(tools, model, adapter, scratch, label, golden):
    for kind in ("nf4", "fp4", "fp8"):
        name = f"{label} {kind}:"
        folder, dense, exact = (scratch / f"{label}.{kind}.{x}" for x in ("quantised", "dense", "exact"))
        if "gpt2" in label and kind == "fp8":
            continue
        merge(tools, model, folder, "--type", kind, *adapter)
        merge(tools, folder, dense, "--type", "f32")
        merge(tools, model, exact, "--type", "f32", *adapter)
        values, parts = dequantised(folder, kind)
        ours, before = load_file(dense / "model.safetensors"), load_file(exact / "model.safetensors")
        conv = lambda name, w: w.T if "gpt2" in label else w  # GPT-2's dense folders hold projections as (in, out)
        same = sum(torch.equal(v.float(), conv(n, ours[n])) for n, v in values.items())
        check(name, len(values) > 0 and same == len(values), f"{same} of {len(values)} matrices are the package's, bit for bit")
        for n, (codes, own, state) in parts.items():
            theirs, _ = bnb.quantize_4bit(conv(n, before[n]).contiguous(), blocksize=64, compress_statistics=True, quant_type=kind)
            different = (theirs.flatten() != codes.flatten()).sum().item()
            if different:
                check(name, False, f"{n}: {different} bytes of codes are not bitsandbytes'")
        if golden is not None:
            golden.update({f"{kind}.{n}": values[n].float().contiguous() for n in GOLDEN})
        if kind != "fp8" and any(v.shape[1] % 64 for v in values.values()):
            continue  # version 0.50 multiplies by those on a GPU alone
        try:
            a, b = logits(folder), logits(dense)
            check(name, (a - b).abs().max() <= 2e-5 * b.abs().max(),
                  f"logits in transformers differ by {((a - b).abs().max() / b.abs().max()).item():.1e}")
        except Exception as error:  # a package that can't load it at all
            check(name, False, f"transformers: {type(error).__name__}: {str(error)[:300]}")


def main():
    tools = pathlib.Path(sys.argv[1]).resolve() / "tools"
    golden = {}
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        check_model(tools, HERE / "peft" / "tiny", ["--adapter", HERE / "peft" / "all_linear.after"], scratch, "tiny", golden)
        transformers.set_seed(5)
        transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=64, n_layer=2, n_head=2, n_positions=64, vocab_size=300,
                                                             bos_token_id=1, eos_token_id=2, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0)
                                     ).save_pretrained(scratch / "gpt2")
        check_model(tools, scratch / "gpt2", [], scratch, "random gpt2", None)
        for model in sys.argv[2:]:
            check_model(tools, pathlib.Path(model), [], scratch, pathlib.Path(model).name, None)
    save_file(golden, HERE / "quantised" / "written.safetensors")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
