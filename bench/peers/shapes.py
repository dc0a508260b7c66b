"""The model shapes of the benches, as transformers' configs."""

import json
import pathlib


NAMED = pathlib.Path(__file__).parents[2] / "src/modelfile/named_shapes.json"  # also of the engine's --shape
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALL_LINEAR_GPT2 = ["c_attn", "c_proj", "c_fc"]


def targets(args, config):
    if args.targets != "all-linear":
        return args.targets.split(",")
    return ALL_LINEAR_GPT2 if config.model_type == "gpt2" else ALL_LINEAR


def model_config(args):
    """The config of --shape or --config."""
    from transformers import AutoConfig  # here, as Unsloth must be imported before transformers

    if args.config:
        with open(args.config, encoding="utf-8") as file:
            return AutoConfig.for_model(**json.load(file))
    named = json.loads(NAMED.read_text(encoding="utf-8"))
    if args.shape not in named:
        raise ValueError(f"--shape {args.shape}: known are {', '.join(named)}")
    config = AutoConfig.for_model(**named[args.shape])
    config.max_position_embeddings = max(config.max_position_embeddings, args.seq_len)
    return config
