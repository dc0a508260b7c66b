"""Makes tests/golden/models/: tiny random models with reference logits, and references for SmolLM2.

    python make_model_golden.py tiny                    tiny models of LLaMA's kind
    python make_model_golden.py families                tiny models of the other families
    python make_model_golden.py smollm2 MODEL.gguf [FOLDER]
        references for SmolLM2-135M-Instruct; also writes it, dequantised, as a Hugging Face FOLDER

Made with torch 2.15, transformers 5.23 and gguf (the versions matter only to the last bit). Everything
is seeded: a second run writes the same tensors.

Tiny models: <name>/ is a Hugging Face folder (or <name>.gguf), <name>.reference.safetensors holds
  ids (T), positions (n), logits (n,V): logits at those positions, and nll (1): the mean over the T - 1
  predicted tokens. Integers are stored as F32. Computed from the stored weights in float64, but for
  rotary angles, norms and softmax, which transformers rounds to float32 whatever the dtype.
  Those of the other families also hold greedy (32): the greedy continuation of the first 70 ids, with
  a KV cache; greedy_margin (1): the least lead of a chosen token's logit over the next.
rope.safetensors: the rotary module's own cosines and sines at ROPE_POSITIONS, for published shapes.
SmolLM2: smollm2.reference.safetensors, per text i
  ids.i, positions.i (n), logits.i (n, every 193rd token of the vocabulary), top_ids.i and top_logits.i
  (n,8), lse.i (n): log-sum-exp, max_abs.i (n), nll.i (1), computed in float32;
  greedy.i (64): greedy continuation (i < 4), greedy_margin.i (64): best minus second best logit.
smollm2.tensors.json: SHA-256 of every tensor as float32, in Hugging Face's layout.
"""

import hashlib
import json
import pathlib
import shutil
import sys

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

OUT = pathlib.Path(__file__).parent / "models"


# ---- tiny models ---------------------------------------------------------------------------------

COMMON = dict(
    vocab_size=67, intermediate_size=32, num_hidden_layers=2, rms_norm_eps=1e-5, initializer_range=0.25,
    max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
)
TINY = {
    # grouped queries, tied; also written as GGUF in BF16 and Q8_0
    "tied_gqa": (transformers.LlamaConfig, torch.bfloat16, dict(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)),
    # one key/value head, three query heads, untied
    "mqa": (transformers.LlamaConfig, torch.bfloat16, dict(
        hidden_size=24, intermediate_size=20, num_attention_heads=3, num_key_value_heads=1,
        rope_parameters=dict(rope_type="default", rope_theta=500.0))),
    # every bias, heads * head_dim != hidden size; also written as GGUF
    "biases": (transformers.LlamaConfig, torch.float16, dict(
        hidden_size=20, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, head_dim=6,
        attention_bias=True, mlp_bias=True)),
    # Llama 3.1's scaling with all three kinds of frequency; also as GGUF with rope_freqs
    "llama3_rope": (transformers.LlamaConfig, torch.bfloat16, dict(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, rope_parameters=dict(
            rope_type="llama3", rope_theta=1000.0, factor=8.0, low_freq_factor=1.0,
            high_freq_factor=4.0, original_max_position_embeddings=64))),
    # Mistral's name, linear scaling, sharded
    "mistral_linear": (transformers.MistralConfig, torch.float32, dict(
        hidden_size=16, num_attention_heads=4, num_key_value_heads=2, sliding_window=None,
        rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0))),
    # biases on q, k, v only
    "qwen2": (transformers.Qwen2Config, torch.bfloat16, dict(
        hidden_size=16, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)),
}


# Windows are shorter than the text of the reference. Head counts odd and even, head sizes not hidden
# size / heads where the family allows it.
FAMILIES = {
    "mistral_window": (transformers.MistralConfig, dict(
        hidden_size=24, num_attention_heads=3, num_key_value_heads=1, sliding_window=50)),
    # the second layer alone has a window
    "qwen2_window": (transformers.Qwen2Config, dict(
        hidden_size=18, num_attention_heads=3, num_key_value_heads=3, use_sliding_window=True,
        sliding_window=40, max_window_layers=1)),
    # also as GGUF
    "qwen3": (transformers.Qwen3Config, dict(
        hidden_size=16, num_attention_heads=4, num_key_value_heads=2, head_dim=10,
        tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=5000.0))),
    "qwen3_odd": (transformers.Qwen3Config, dict(
        hidden_size=20, num_attention_heads=3, num_key_value_heads=1, head_dim=6, attention_bias=True)),
    # six local layers but one, as GGUF's readers have it; also as GGUF
    "gemma3": (transformers.Gemma3TextConfig, dict(
        hidden_size=16, num_hidden_layers=7, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        query_pre_attn_scalar=8, sliding_window=40, intermediate_size=20)),
    "gemma3_odd": (transformers.Gemma3TextConfig, dict(
        hidden_size=21, num_attention_heads=3, num_key_value_heads=1, head_dim=10,
        query_pre_attn_scalar=17, sliding_window=33, layer_types=["full_attention", "sliding_attention"],
        rope_parameters=dict(
            full_attention=dict(rope_type="linear", rope_theta=20000.0, factor=4.0),
            sliding_attention=dict(rope_type="default", rope_theta=700.0)))),
    # also as GGUF
    "gpt2": (transformers.GPT2Config, dict(
        n_embd=16, n_layer=2, n_head=4, n_positions=320, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)),
    # odd head size, sharded
    "gpt2_odd": (transformers.GPT2Config, dict(
        n_embd=21, n_layer=2, n_head=3, n_inner=20, n_positions=310, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0)),
}


def make_families():
    for seed, (name, (config_class, settings)) in enumerate(FAMILIES.items()):
        gpt2 = config_class is transformers.GPT2Config
        common = dict(vocab_size=67, bos_token_id=1, eos_token_id=2) if gpt2 else COMMON
        config = config_class(**{**common, **settings})
        config._attn_implementation = "eager"
        model = transformers.AutoModelForCausalLM.from_config(config)
        randomise(model, 100 + seed)
        model = model.to(torch.bfloat16)
        model.tie_weights()
        folder = OUT / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder, max_shard_size="12KB" if name == "gpt2_odd" else "1GB")
        (folder / "generation_config.json").unlink(missing_ok=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager")
        reference(model, OUT / f"{name}.reference.safetensors", seed, with_greedy=True)
    for name in ["qwen3", "gemma3", "gpt2"]:
        write_family_gguf(OUT / name, OUT / f"{name}.bf16.gguf", "BF16")


def randomise(model, seed):
    """Gains near 1 and visible biases: the library's own initialisation would hide mistakes in them."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        noise = torch.randn(p.shape, generator=generator)
        if "norm" in name or ".ln_" in name and name.endswith("weight"):
            stored_less_one = model.config.model_type == "gemma3_text"
            p.data = (0.0 if stored_less_one else 1.0) + 0.3 * noise
        elif name.endswith("bias"):
            p.data = 0.5 * noise
        else:
            conv1d = ".c_" in name  # GPT-2 stores (in, out)
            p.data = noise / p.shape[0 if conv1d else -1] ** 0.5


def nll_of(logits, ids):
    return torch.nn.functional.cross_entropy(logits[:-1], ids[1:])


def reference(model, path, seed, length=300, with_greedy=False):
    """Logits at a few positions of one sequence."""
    model = model.double().eval()
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, model.config.vocab_size, (length,), generator=generator)
    positions = torch.tensor([0, 1, 2, 5, 17, 63, 64, 130, 200, length - 1])
    with torch.no_grad():
        logits = model(ids[None]).logits[0]
    extra = {}
    if with_greedy:
        run = greedy(model, ids[:70], "", n=32)
        extra = {"greedy": run["greedy."], "greedy_margin": run["greedy_margin."].min().float()[None]}
        print(path.name, "largest logit", logits.abs().max().item(), "margin", extra["greedy_margin"].item())
    save_file({
        **extra,
        "ids": ids.float(), "positions": positions.float(), "logits": logits[positions].float(),
        "nll": nll_of(logits, ids).float()[None],
    }, path)


ROPE_POSITIONS = [0, 1, 2, 77, 1000, 4095, 8191]


def make_rope():
    """cos (n, D/2) and sin of transformers' own rotary module at a few positions, in float32."""
    llama32 = dict(rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0,
                   high_freq_factor=4.0, original_max_position_embeddings=8192)
    shapes = {
        "smollm2-135m": (64, dict(rope_type="default", rope_theta=100000.0)),
        "llama2-7b": (128, dict(rope_type="default", rope_theta=10000.0)),
        "llama3.2-1b": (64, llama32),
    }
    out = {}
    for name, (head_dim, rope) in shapes.items():
        config = transformers.LlamaConfig(hidden_size=2 * head_dim, num_attention_heads=2,
                                          max_position_embeddings=131072, rope_parameters=rope)
        module = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
        cos, sin = module(torch.zeros(1), torch.tensor([ROPE_POSITIONS]))
        out[f"{name}.cos"] = cos[0, :, :head_dim // 2].contiguous()
        out[f"{name}.sin"] = sin[0, :, :head_dim // 2].contiguous()
    save_file(out, OUT / "rope.safetensors")


def make_tiny():
    make_rope()
    for seed, (name, (config_class, dtype, settings)) in enumerate(TINY.items()):
        config = config_class(**{**COMMON, **settings})
        config._attn_implementation = "eager"
        model = transformers.AutoModelForCausalLM.from_config(config)
        randomise(model, seed)
        model = model.to(dtype)
        model.tie_weights()
        folder = OUT / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder, max_shard_size="12KB" if name == "mistral_linear" else "1GB")
        (folder / "generation_config.json").unlink(missing_ok=True)
        # Loaded again: model.to(dtype) above also rounded the rotary frequencies, which no user's model has.
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager")
        reference(model, OUT / f"{name}.reference.safetensors", seed)
    for name, types in [("tied_gqa", ["BF16", "Q8_0"]), ("biases", ["F16"]), ("llama3_rope", ["BF16"]),
                        ("qwen2", ["F32"])]:
        for kind in types:
            write_gguf(OUT / name, OUT / f"{name}.{kind.lower()}.gguf", kind)


# ---- GGUF twins ----------------------------------------------------------------------------------

GGUF_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}
    if name in whole:
        return whole[name]
    _, _, layer, rest = name.split(".", 3)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{GGUF_NAMES[module]}.{kind}"


def to_pairs(values, heads):
    """LLaMA's GGUF row order: the two halves of a head are interleaved."""
    return values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(
        values.shape)


def write_gguf(folder, path, kind):
    config = json.loads((folder / "config.json").read_text())
    architecture = config["model_type"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config["rope_parameters"]
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(rope, head_dim))
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        values = tensor.float().numpy()
        if architecture == "llama" and ".q_proj." in name:
            values = to_pairs(values, config["num_attention_heads"])
        if architecture == "llama" and ".k_proj." in name:
            values = to_pairs(values, config["num_key_value_heads"])
        stored = gguf.GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_family_gguf(folder, path, kind):
    """As llama.cpp's converter writes the family; tensor names are the gguf package's own."""
    config = transformers.AutoConfig.from_pretrained(folder)
    arch = {"qwen3": gguf.MODEL_ARCH.QWEN3, "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
            "gpt2": gguf.MODEL_ARCH.GPT2}[config.model_type]
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(4 * config.n_embd)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        rope = config.rope_parameters
        writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        values = tensor.float().numpy()
        if config.model_type == "gpt2" and ".c_" in name and values.ndim == 2:
            values = np.ascontiguousarray(values.T)
        if config.model_type == "gemma3_text" and "norm" in name:
            values = values + np.float32(1)
        stored = gguf.GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")),
                          gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama3_factors(rope, head_dim):
    """The divisors that Llama 3.1's scaling amounts to, one per frequency."""
    plain = 1.0 / rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    context = rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    factors = []
    for frequency in plain:
        wavelength = 2 * np.pi / frequency
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


# ---- SmolLM2 -------------------------------------------------------------------------------------

SENTENCES = [
    "The lighthouse keeper counted the ships every evening and wrote their names in a long grey book.",
    "When the storm came from the north, nobody in the village slept before the last boat was home.",
    "Bread needs flour, water, salt and time; the oven does the rest if you let it become hot enough.",
    "In 1903 the station had 3 platforms, 2 clocks and exactly 41 benches, most of them green.",
    "A good proof is short, but the way to it rarely is.",
    "She asked whether rivers remember their old beds, and her father said that maps do.",
    "Temperatures between -12.5 and 38 degrees were measured at the same place within one year.",
    "He tuned the piano twice, first by ear and then, because it was raining, by the book.",
]
TEXTS = [
    "Hello, how are you?",
    "The capital of France is",
    "1, 1, 2, 3, 5, 8, 13,",
    "Once upon a time, in a small village by the sea,",
    "<|im_start|>user\nWhat is the boiling point of water?<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Caf\u00e9 na\u00efve \u2014 \u201cquoted\u201d text, \u65e5\u672c\u8a9e and \U0001f600 emoji.",
    "SELECT name, COUNT(*) FROM ships WHERE year >= 1903 GROUP BY name ORDER BY 2 DESC;",
    "   leading spaces,\ttabs\tand\n\n\nblank lines   ",
    "{\"id\": 17, \"tags\": [\"a\", \"b\"], \"ok\": true, \"ratio\": 0.125}",
    "Q: Which is heavier, a kilogram of feathers or a kilogram of iron?\nA:",
    "x^2 + y^2 = r^2 describes a circle; solving for y gives",
] + [" ".join(SENTENCES[(i + j) % len(SENTENCES)] for j in range(n)) for i, n in
     enumerate([2, 4, 6, 8, 11, 14, 18, 24])]


def make_smollm2(model_path, folder=None):
    model_path = pathlib.Path(model_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_path.parent, gguf_file=model_path.name)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        model_path.parent, gguf_file=model_path.name, dtype=torch.float32)
    # A model that came from GGUF refuses to be saved: its weights move to a plain one.
    config = transformers.AutoConfig.from_pretrained(model_path.parent, gguf_file=model_path.name)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.eval()
    print(config)
    if folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    tensors = {name: t for name, t in model.state_dict().items() if name != "lm_head.weight"}
    assert config.tie_word_embeddings
    digests = {name: hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest()
               for name, t in sorted(tensors.items())}
    (OUT / "smollm2.tensors.json").write_text(json.dumps(digests, indent=0) + "\n")

    out = {}
    for i, text in enumerate(TEXTS):
        ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])[:500]
        length = len(ids)
        positions = torch.tensor(sorted({0, length // 3, 2 * length // 3, length - 2, length - 1}))
        with torch.no_grad():
            all_logits = model(ids[None]).logits[0]
        logits = all_logits[positions]
        top = logits.topk(8, dim=-1)
        out |= {
            f"ids.{i}": ids.float(), f"positions.{i}": positions.float(),
            f"logits.{i}": logits[:, ::193].contiguous(), f"top_ids.{i}": top.indices.float(),
            f"top_logits.{i}": top.values, f"lse.{i}": logits.logsumexp(-1),
            f"max_abs.{i}": logits.abs().amax(-1), f"nll.{i}": nll_of(all_logits, ids)[None],
        }
        if i < 4:
            out |= greedy(model, ids, i)
        print(i, length, flush=True)
    save_file(out, OUT / "smollm2.reference.safetensors")


def greedy(model, ids, i, n=64):
    tokens, margins, cache, step = [], [], None, ids[None]
    with torch.no_grad():
        for _ in range(n):
            result = model(step, past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            best = result.logits[0, -1].topk(2)
            tokens.append(best.indices[0])
            margins.append(best.values[0] - best.values[1])
            step = best.indices[:1][None]
    return {f"greedy.{i}": torch.stack(tokens).float(), f"greedy_margin.{i}": torch.stack(margins)}


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    torch.set_num_threads(2)
    if sys.argv[1:2] == ["tiny"] and len(sys.argv) == 2:
        make_tiny()
    elif sys.argv[1:2] == ["families"] and len(sys.argv) == 2:
        make_families()
    elif sys.argv[1:2] == ["smollm2"] and len(sys.argv) in (3, 4):
        make_smollm2(*sys.argv[2:])
    else:
        sys.exit(__doc__)
