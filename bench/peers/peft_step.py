"""The LoRA training step of PyTorch + transformers + PEFT that peft_cpu.py and peft_gpu.py time."""

import gc
import statistics
import time

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


def _shape(hidden, layers, heads, kv_heads, intermediate, vocab, tied):
    return dict(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=intermediate, vocab_size=vocab, tie_word_embeddings=tied)


# The names and numbers of named_shape() in src/nn/config.cpp.
SHAPES = {
    "smollm2-135m": _shape(576, 30, 9, 3, 1536, 49152, True),
    "tinyllama-1.1b": _shape(2048, 22, 32, 4, 5632, 32000, False),
    "llama3.2-1b": _shape(2048, 16, 32, 8, 8192, 128256, True),
    "llama2-7b": _shape(4096, 32, 32, 32, 11008, 32000, False),
    "llama3-8b": _shape(4096, 32, 32, 8, 14336, 128256, False),
}
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def add_arguments(parser):
    parser.add_argument("--shape", default="smollm2-135m", choices=SHAPES)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", default="all-linear", help="all-linear or q_proj,v_proj,...")
    parser.add_argument("--dtype", default="f32", choices=DTYPES)
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument(
        "--mode", default="eager",
        help="comma list of eager, compile (by layer), graph (whole model, CUDA graphs), recompute (activation "
        "checkpointing), fp32ad (float32 adapters under autocast)")


def build(args, mode, device):
    """The model with its adapter, and the callable that computes a forward pass."""
    config = LlamaConfig(
        **SHAPES[args.shape], max_position_embeddings=max(4096, args.seq_len), rms_norm_eps=1e-5,
        attn_implementation="sdpa")
    torch.manual_seed(0)
    torch.set_default_dtype(DTYPES[args.dtype])
    with torch.device(device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    targets = ALL_LINEAR if args.targets == "all-linear" else args.targets.split(",")
    lora = LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(model, lora, autocast_adapter_dtype="fp32ad" in mode)
    model.config.use_cache = False
    if "recompute" in mode:
        model.base_model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    if "compile" in mode:
        for layer in model.base_model.model.model.layers:
            layer.compile(dynamic=False)
    if "graph" in mode:
        return model, torch.compile(model, mode="reduce-overhead", dynamic=False)
    return model, model


def measure(args, device, synchronize, fused):
    """Runs the steps; returns what every JSON line holds."""
    mode = set(args.mode.split(","))
    unknown = mode - {"eager", "compile", "graph", "recompute", "fp32ad"}
    if unknown:
        raise SystemExit(f"--mode: unknown {', '.join(sorted(unknown))}")
    gc.collect()
    model, forward = build(args, mode, device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=fused)
    ids = torch.randint(0, SHAPES[args.shape]["vocab_size"], (args.batch, args.seq_len), device=device)
    autocast = torch.autocast(device, dtype=torch.bfloat16, enabled="fp32ad" in mode and args.dtype == "bf16")

    def step():
        with autocast:
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    seconds, losses = [], []
    for i in range(args.warmup + args.steps):
        synchronize()
        start = time.perf_counter()
        loss = step()
        synchronize()
        if i >= args.warmup:
            seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    median = statistics.median(seconds)
    return dict(
        engine="peft", mode=args.mode, shape=args.shape, dtype=args.dtype, batch=args.batch, seq_len=args.seq_len,
        rank=args.rank, targets=args.targets, step_seconds=median, step_seconds_min=min(seconds),
        step_seconds_max=max(seconds), tokens_per_second=args.batch * args.seq_len / median, first_loss=losses[0],
        last_loss=losses[-1], trainable=sum(p.numel() for p in parameters),
        versions=dict(torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__))
