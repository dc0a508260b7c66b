"""Unsloth: the same random model with its adapter, on a CUDA device.

Unsloth loads from a folder only, so the random model goes through a temporary one, with a tokenizer of a few tokens.
Recompute is its own: activations are kept in host memory.
"""

import functools
import gc
import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")

from unsloth import FastLanguageModel  # isort: skip: it wants to be imported before the others
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import shapes


def _write_model(args, folder):
    config = shapes.model_config(args)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{chr(33 + i): 3 + i for i in range(90)}}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=[])), unk_token="<unk>", bos_token="<s>",
        eos_token="</s>", pad_token="<unk>").save_pretrained(folder)
    return config


def build(args):
    """What lora_step.measure() needs."""
    if args.device != "cuda" or args.dtype != "bf16":
        raise ValueError("unsloth runs on CUDA in bf16 here")
    with tempfile.TemporaryDirectory() as folder:
        config = _write_model(args, folder)
        gc.collect()
        torch.cuda.empty_cache()
        model, _ = FastLanguageModel.from_pretrained(
            folder, max_seq_length=args.seq_len, dtype=torch.bfloat16, load_in_4bit=False, local_files_only=True)
    model = FastLanguageModel.get_peft_model(
        model, r=args.rank, target_modules=shapes.targets(args, config), lora_alpha=args.rank, lora_dropout=args.dropout, bias="none",
        use_gradient_checkpointing="unsloth" if args.recompute else False, random_state=0)
    model.train()
    return dict(
        forward=model, parameters=[p for p in model.parameters() if p.requires_grad], vocab_size=config.vocab_size,
        autocast=functools.partial(torch.autocast, "cuda", dtype=torch.bfloat16))


def set_mode(peer, mode):
    """There is one."""
