"""PyTorch + transformers + PEFT: a random model with its adapter, run eagerly or compiled."""

import contextlib
import functools

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import shapes


def build(args):
    """What lora_step.measure() needs, with `model` and `layers` for set_mode()."""
    config = shapes.model_config(args)
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    f32_adapters = args.f32_adapters and args.dtype == "bf16"
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    torch.set_default_dtype(torch.float32)
    lora = LoraConfig(
        r=args.rank, lora_alpha=args.rank, target_modules=shapes.targets(args, config), task_type="CAUSAL_LM",
        lora_dropout=args.dropout, fan_in_fan_out=config.model_type == "gpt2")
    model = get_peft_model(model, lora, autocast_adapter_dtype=f32_adapters)
    model.config.use_cache = False
    if args.recompute:
        model.base_model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    autocast = functools.partial(torch.autocast, args.device, dtype=torch.bfloat16)
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == config.num_hidden_layers)
    return dict(
        model=model, layers=layers, forward=model,
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
