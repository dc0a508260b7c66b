"""Makes tests/golden/quantised/: matrices as pre-quantised folders hold them, and what they stand for.

    python make_quantised_golden.py            needs torch, bitsandbytes 0.50, transformers, peft, safetensors

formats.safetensors   X.weight (or qweight, ...) with its companions, and X.expected in F32: bitsandbytes' matrices
                      as bitsandbytes dequantises them, the others by their formats' definitions
bnb/                  ../peft/tiny with its projections quantised by bitsandbytes in several ways, some left dense
bnb.expected.safetensors   all its matrices dequantised by bitsandbytes, F32
bnb.json              ten steps that PEFT trains on the dequantised folder, in F32: see make_peft_golden.py
"""
import json
import pathlib
import shutil
import sys
import tempfile

import bitsandbytes.functional as bnb
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import make_peft_golden as peft_golden  # noqa: E402

HERE = pathlib.Path(__file__).parent
OUT = HERE / "quantised"
torch.set_num_threads(1)
torch.manual_seed(11)


def quantise(name, w, kind="nf4", block=64, nested=True, storage=torch.uint8):
    """The tensors of one matrix as bitsandbytes saves them, and its values in F32."""
    codes, state = bnb.quantize_4bit(w, blocksize=block, compress_statistics=nested, quant_type=kind)
    tensors = {f"{name}.weight.{k}": v.clone() for k, v in state.as_dict(packed=True).items()}
    if storage != torch.uint8:
        codes = codes.flatten().view(storage).reshape(-1, 1)
    tensors[f"{name}.weight"] = codes.clone()
    # As one row: version 0.50's CPU kernel takes each row's blocks to begin anew, which neither its quantising nor
    # its CUDA kernels do, so a matrix whose rows are no whole blocks would come out wrong.
    state.shape = torch.Size([1, w.numel()])
    return tensors, bnb.dequantize_4bit(codes.view(torch.uint8).reshape(-1, 1), state).float().reshape(w.shape)


def make_formats():
    out = {}

    def add(name, tensors, expected):
        out.update({k: v.contiguous() for k, v in tensors.items()})
        out[f"{name}.expected"] = expected.float().contiguous()

    for kind in ("nf4", "fp4"):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for nested in (True, False):
                for shape in ((24, 192), (5, 77)):
                    name = f"{kind}_{str(dtype)[6:]}_{'nested' if nested else 'plain'}_{shape[1]}"
                    add(name, *quantise(name, (torch.randn(shape) * .02).to(dtype), kind, 64, nested))
    add("many_scales", *quantise("many_scales", torch.randn(96, 256) * .02, "nf4", 32))
    add("wide_blocks", *quantise("wide_blocks", torch.randn(20, 128) * .02, "nf4", 1024, False))
    for storage in (torch.bfloat16, torch.float32, torch.int8):
        name = f"stored_{str(storage)[6:]}"
        add(name, *quantise(name, (torch.randn(16, 64) * .02).bfloat16(), storage=storage))

    def fp8(shape):
        return (torch.randn(shape) * 40).clamp(-440, 440).to(torch.float8_e4m3fn)

    def spread(scale, rows, cols):
        return scale.float().repeat_interleave(128, 0).repeat_interleave(128, 1)[:rows, :cols]

    for name, dtype in (("fp8_f32", torch.float32), ("fp8_bf16", torch.bfloat16), ("fp8_e8m0", torch.float8_e8m0fnu)):
        codes, scale = fp8((130, 200)), (torch.rand(2, 2) * .01 + .001).to(dtype)
        add(name, {f"{name}.weight": codes, f"{name}.weight_scale_inv": scale}, codes.float() * spread(scale, 130, 200))
    codes, scale = fp8((12, 40)), torch.tensor(.003)
    add("fp8_one", {"fp8_one.weight": codes, "fp8_one.weight_scale_inv": scale,
                    "fp8_one.activation_scale": torch.tensor(1.)}, codes.float() * scale)
    codes, scale = fp8((12, 40)), (torch.rand(12, 1) * .01).bfloat16()
    add("fp8_rows", {"fp8_rows.weight": codes, "fp8_rows.weight_scale": scale}, codes.bfloat16() * scale)
    codes, scale = fp8((12, 40)), torch.tensor([.02])
    add("fp8_tensor", {"fp8_tensor.weight": codes, "fp8_tensor.weight_scale": scale}, codes.float() * scale)

    def pack(codes, along):
        """Eight 4-bit codes along a dimension in an I32, the first in the lowest bits."""
        parts = np.moveaxis(codes, along, -1).reshape(*np.moveaxis(codes, along, -1).shape[:-1], -1, 8)
        words = sum(parts[..., i].astype(np.uint32) << np.uint32(4 * i) for i in range(8)).astype(np.uint32)
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(words.view(np.int32), -1, along)))

    rng = np.random.default_rng(3)
    n, k, group = 24, 64, 16
    codes = rng.integers(0, 16, (n, k))
    zeros = rng.integers(0, 16, (n, k // group))
    scale = torch.rand(n, k // group) * .02 - .004
    wide = lambda x: np.repeat(x, group, 1)
    for name, z in (("pack_symmetric", None), ("pack_zeros", zeros)):
        s = scale.bfloat16()
        tensors = {f"{name}.weight_packed": pack(codes, 1), f"{name}.weight_scale": s,
                   f"{name}.weight_shape": torch.tensor([n, k])}
        if z is not None:
            tensors[f"{name}.weight_zero_point"] = pack(z, 0)
        difference = torch.from_numpy(codes - (8 if z is None else wide(z))).bfloat16()
        add(name, tensors, difference * s.repeat_interleave(group, 1))
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    shuffled = lambda x: x.reshape(x.shape[0], -1, 8)[..., order].reshape(x.shape)  # nibble p: column order[p]
    s = scale.half()
    add("awq", {"awq.qweight": pack(shuffled(codes.T.copy()), 1), "awq.qzeros": pack(shuffled(zeros.T.copy()), 1),
                "awq.scales": s.T.contiguous()},
        torch.from_numpy(codes - wide(zeros)).half() * s.repeat_interleave(group, 1))
    stored = pack(zeros.T.copy(), 1)
    words = stored.numpy().view(np.uint32) - np.uint32(0x11111111)  # as version 1's writers do it: a zero of 0 borrows
    for name, z in (("gptq_v1", torch.from_numpy(words.view(np.int32))), ("gptq_v2", stored)):
        add(name, {f"{name}.qweight": pack(codes.T.copy(), 0), f"{name}.qzeros": z,
                   f"{name}.scales": s.T.contiguous(),
                   f"{name}.g_idx": torch.arange(k, dtype=torch.int32) // group},
            torch.from_numpy(codes - wide(zeros)).half() * s.repeat_interleave(group, 1))
    save_file(out, OUT / "formats.safetensors")


def make_bnb():
    tiny = HERE / "peft" / "tiny"
    shutil.rmtree(OUT / "bnb", ignore_errors=True)
    (OUT / "bnb").mkdir()
    stored, dense, expected = {}, {}, {}
    ways = [dict(), dict(nested=False), dict(kind="fp4"), dict(storage=torch.bfloat16), dict(block=128)]
    turn = 0
    for name, w in sorted(load_file(tiny / "model.safetensors").items()):
        dense[name] = w.float()
        stored[name] = w
        if "_proj" not in name or "layers.1.mlp.down_proj" in name or "layers.0.self_attn.k_proj" in name:
            continue
        del stored[name]
        tensors, values = quantise(name.removesuffix(".weight"), w, **ways[turn % len(ways)])
        turn += 1
        stored.update(tensors)
        dense[name] = expected[name] = values
    save_file(stored, OUT / "bnb" / "model.safetensors", metadata={"format": "pt"})
    save_file(expected, OUT / "bnb.expected.safetensors")
    config = json.loads((tiny / "config.json").read_text())
    plain = dict(config)
    config["quantization_config"] = {  # without the keys that one folder of several ways would deny
        "_load_in_4bit": True, "_load_in_8bit": False, "bnb_4bit_compute_dtype": "bfloat16",
        "llm_int8_enable_fp32_cpu_offload": False, "llm_int8_has_fp16_weight": False, "llm_int8_skip_modules": None,
        "llm_int8_threshold": 6.0, "load_in_4bit": True, "load_in_8bit": False, "quant_method": "bitsandbytes"}
    (OUT / "bnb" / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    rows = peft_golden.read_rows(HERE / "peft" / "rows.jsonl", tokenizer)
    case = {**peft_golden.TINY_CASES["all_linear"], "steps": 10, "b_bound": 0.2, "eval_rows": 8}
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        plain["dtype"] = "float32"
        (folder / "config.json").write_text(json.dumps(plain))
        save_file(dense, folder / "model.safetensors", metadata={"format": "pt"})
        load = lambda: transformers.LlamaForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager")
        peft_golden.write_json(OUT / "bnb.json", case,
                               peft_golden.train(peft_golden.attach(load(), case), case, rows, rows[-8:]))


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    make_formats()
    make_bnb()
