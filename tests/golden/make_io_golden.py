"""Makes the golden files of the file layer's tests. Needs numpy, gguf, safetensors, ml_dtypes or torch.

    python make_io_golden.py        writes beside itself:
    io_blocks.gguf          every tensor type we read, raw blocks: random, zero and extreme scales; and
                            metadata of every type (written by the gguf package)
    io_blocks.safetensors   what those tensors are in F32 (dequantised by the gguf package)
    io_dtypes.safetensors   dtypes we read from safetensors, each with its F32 values beside it; shapes at
                            the edge; dtypes we only skip
    io_written.safetensors  what the reference writer makes of three F32 tensors: ours must be these bytes
"""
import pathlib

import numpy as np
import torch
from gguf import GGUFWriter, GGMLQuantizationType as T
from gguf.quants import dequantize
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

HERE = pathlib.Path(__file__).parent
rng = np.random.default_rng(20240607)

HALVES = np.array([0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF, 0x7C00,
                   0xFC00, 0x7E00, 0x3555, 0x1234, 0x8FFF], dtype=np.uint16)


def blocks(kind, n_blocks, n_scales, n_bytes):
    """n_blocks blocks of n_scales halves and n_bytes bytes of quanta."""
    quanta = rng.integers(0, 256, (n_blocks, n_bytes), dtype=np.uint8)
    if kind == "random":
        scales = rng.normal(0, 0.05, (n_blocks, n_scales)).astype(np.float16).view(np.uint16)
    elif kind == "zero":
        scales, quanta = np.zeros((n_blocks, n_scales), np.uint16), quanta * 0
    else:
        scales = np.resize(HALVES, n_blocks * n_scales + 3)[3:].reshape(n_blocks, n_scales)
        quanta[::3], quanta[1::3] = 0, 255
        quanta[2::3] = 128
    return np.concatenate([scales.view(np.uint8).reshape(n_blocks, -1), quanta], axis=1)


def k_blocks(kind, n_blocks, n_bytes, at):
    """Blocks of the K types: n_bytes bytes, halves at the offsets `at`."""
    raw = rng.integers(0, 256, (n_blocks, n_bytes), dtype=np.uint8)
    if kind == "zero":
        raw *= 0
    halves = blocks(kind, n_blocks, len(at), 0)
    for i, offset in enumerate(at):
        raw[:, offset:offset + 2] = halves[:, 2 * i:2 * i + 2]
    return raw


tensors, expected = {}, {}
for kind in ("random", "zero", "extreme"):
    n_rows, row_blocks = 8, 2
    for t, n_scales, n_bytes in ((T.Q4_0, 1, 16), (T.Q4_1, 2, 16), (T.Q8_0, 1, 32)):
        raw = blocks(kind, n_rows * row_blocks, n_scales, n_bytes).reshape(n_rows, -1)
        tensors[f"{t.name.lower()}.{kind}"] = (raw, t)
        expected[f"{t.name.lower()}.{kind}"] = dequantize(raw, t)
    for t, n_bytes, at in ((T.Q5_0, 22, [0]), (T.Q5_1, 24, [0, 2]), (T.Q2_K, 84, [80, 82]), (T.Q3_K, 110, [108]),
                           (T.Q4_K, 144, [0, 2]), (T.Q5_K, 176, [0, 2]), (T.Q6_K, 210, [208])):
        raw = k_blocks(kind, 4 if n_bytes > 32 else 16, n_bytes, at).reshape(2, -1)
        tensors[f"{t.name.lower()}.{kind}"] = (raw, t)
        expected[f"{t.name.lower()}.{kind}"] = dequantize(raw, t)
# Added later, so with a generator of their own: nibbles that choose from a table. MXFP4's scale is an exponent.
lookup = np.random.default_rng(19)
for kind in ("random", "zero", "extreme"):
    for t, n_bytes in ((T.IQ4_NL, 18), (T.IQ4_XS, 136), (T.MXFP4, 17)):
        raw = lookup.integers(0, 256, (16 if n_bytes < 32 else 4, n_bytes), dtype=np.uint8)
        if kind == "zero":
            raw *= 0
        if t == T.MXFP4:
            raw[:, 0] = {"random": lookup.integers(100, 140, 16), "zero": 0, "extreme": np.resize([0, 1, 2, 3, 254, 250], 16)}[kind]
        else:
            raw[:, :2] = np.resize(HALVES, len(raw)).astype(np.uint16)[:, None].view(np.uint8) if kind == "extreme" else (
                lookup.normal(0, 0.05, (len(raw), 1)).astype(np.float16).view(np.uint8) if kind == "random" else 0)
        tensors[f"{t.name.lower()}.{kind}"] = (raw.reshape(2, -1), t)
        expected[f"{t.name.lower()}.{kind}"] = dequantize(raw.reshape(2, -1), t)
# Every half there is, and halves and singles of every kind.
every = np.arange(65536, dtype=np.uint32).astype(np.uint16).view(np.float16)[::17].reshape(16, -1)
tensors["f16.every"] = (every, T.F16)
expected["f16.every"] = every.astype(np.float32)
brain = rng.integers(0, 65536, (4, 64), dtype=np.uint16)
tensors["bf16.bits"] = (brain.view(np.uint8), T.BF16)
expected["bf16.bits"] = (brain.astype(np.uint32) << 16).view(np.float32)
single = rng.normal(size=(2, 3, 4)).astype(np.float32)
single[0, 0] = [np.inf, -0.0, 1e-45, 3.4e38]
tensors["f32.rank3"] = (single, T.F32)
expected["f32.rank3"] = single

w = GGUFWriter(HERE / "io_blocks.gguf", "golden")
w.add_uint8("golden.u8", 255)
w.add_int8("golden.i8", -128)
w.add_uint16("golden.u16", 65535)
w.add_int16("golden.i16", -32768)
w.add_uint32("golden.u32", 2**32 - 1)
w.add_int32("golden.i32", -(2**31))
w.add_uint64("golden.u64", 2**64 - 1)
w.add_int64("golden.i64", -(2**63))
w.add_float32("golden.f32", 0.1)
w.add_float64("golden.f64", 0.1)
w.add_bool("golden.bool", True)
w.add_string("golden.string", "grüße")
w.add_array("golden.strings", ["", "a", "Ġthe", "日本"])
w.add_array("golden.ints", [1, -2, 3])
w.add_array("golden.floats", [0.5, -1.5])
for name, (data, t) in tensors.items():
    if t in (T.F32, T.F16):
        w.add_tensor(name, data)
    else:
        w.add_tensor(name, data, raw_dtype=t)
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()
save_file(expected, HERE / "io_blocks.safetensors")

x = torch.tensor(rng.normal(size=(3, 5)))
mixed = {"f64": x, "f32": x.float(), "f16": x.half(), "bf16": x.bfloat16()}
mixed |= {f"{k}.as_f32": v.float().clone() for k, v in mixed.items()}
mixed |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "rank5": torch.ones(1, 1, 2, 1, 1),
          "ids": torch.arange(3), "mask": torch.tensor([True, False])}
save_torch(mixed, HERE / "io_dtypes.safetensors", metadata={"format": "pt", "who": "torch"})

save_file({"b.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.ü": np.array([1.5], np.float32),
           "c\"\\\n": np.zeros((0, 2), np.float32)}, HERE / "io_written.safetensors", metadata={"format": "pt"})
