"""PyTorch + transformers + PEFT: a random model with its adapter, run eagerly or compiled."""

import contextlib
import functools

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

import shapes


def build(args):
    """What lora_step.measure() needs, with `model` and `layers` for set_mode()."""
    config = shapes.model_config(args)
    config._attn_implementation = "sdpa"
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    f32_adapters = args.f32_adapters and args.dtype == "bf16"
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(args.device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    lora = LoraConfig(
        r=args.rank, lora_alpha=args.rank, target_modules=shapes.targets(args), task_type="CAUSAL_LM",
        lora_dropout=args.dropout)
    model = get_peft_model(model, lora, autocast_adapter_dtype=f32_adapters)
    model.config.use_cache = False
    if args.recompute:
        model.base_model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    autocast = functools.partial(torch.autocast, args.device, dtype=torch.bfloat16)
    return dict(
        model=model, layers=model.base_model.model.model.layers, forward=model,
        parameters=[p for p in model.parameters() if p.requires_grad], vocab_size=config.vocab_size,
        autocast=autocast if f32_adapters else contextlib.nullcontext)


def set_mode(peer, mode):
    """Leaves the previous mode; compiles lazily what this mode needs."""
    torch._dynamo.reset()
    for layer in peer["layers"]:
        layer._compiled_call_impl = None  # what Module.compile() sets
        if mode == "compile-layer":
            layer.compile(dynamic=False)
    peer["forward"] = peer["model"]
    if mode == "graph":
        peer["forward"] = torch.compile(peer["model"], mode="reduce-overhead", dynamic=False)
