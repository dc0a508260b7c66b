"""The model shapes of the benches, as transformers' configs."""

import json


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
ALL_LINEAR_GPT2 = ["c_attn", "c_proj", "c_fc"]


def targets(args, config):
    if args.targets != "all-linear":
        return args.targets.split(",")
    return ALL_LINEAR_GPT2 if config.model_type == "gpt2" else ALL_LINEAR


def model_config(args):
    """The config of --shape or --config."""
    from transformers import AutoConfig, LlamaConfig  # here, as Unsloth must be imported before transformers

    if args.config:
        with open(args.config, encoding="utf-8") as file:
            return AutoConfig.for_model(**json.load(file))
    if args.shape not in SHAPES:
        raise ValueError(f"--shape {args.shape}: known are {', '.join(SHAPES)}")
    return LlamaConfig(**SHAPES[args.shape], max_position_embeddings=max(4096, args.seq_len), rms_norm_eps=1e-5)
