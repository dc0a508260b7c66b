"""The cases of the matrix: which there are follows from axes and one rule of memory, never from a list of cases."""

import dataclasses
import math


def _llama(hidden, layers, heads, kv_heads, intermediate, vocab, positions, theta=10000.0, tied=False, **more):
    return {**dict(
        model_type="llama", hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=intermediate, vocab_size=vocab, rms_norm_eps=1e-5,
        max_position_embeddings=positions, rope_theta=theta, tie_word_embeddings=tied, hidden_act="silu"), **more}


def _qwen3(hidden, layers, heads, intermediate, tied):
    return _llama(hidden, layers, heads, 8, intermediate, 151936, 40960, 1e6, tied,
                  model_type="qwen3", head_dim=128, rms_norm_eps=1e-6)


def _gemma3(hidden, layers, intermediate):
    return dict(
        model_type="gemma3_text", hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, intermediate_size=intermediate, vocab_size=262144, rms_norm_eps=1e-6,
        max_position_embeddings=32768, rope_theta=1e6, rope_local_base_freq=1e4, sliding_window=512,
        sliding_window_pattern=6, query_pre_attn_scalar=256, hidden_activation="gelu_pytorch_tanh",
        tie_word_embeddings=True)


def _gpt2(hidden, layers, heads):
    return dict(
        model_type="gpt2", n_embd=hidden, n_layer=layers, n_head=heads, n_positions=1024, n_ctx=1024, vocab_size=50257,
        activation_function="gelu_new", layer_norm_epsilon=1e-5, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)


# The numbers of the models' published config.json files.
MODELS = {
    "smollm2-135m": _llama(576, 30, 9, 3, 1536, 49152, 8192, 1e5, True),
    "gpt2-124m": _gpt2(768, 12, 12),
    "gemma3-270m": _gemma3(640, 18, 2048),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "qwen3-0.6b": _qwen3(1024, 28, 16, 3072, True),
    "gemma3-1b": _gemma3(1152, 26, 6912),
    "tinyllama-1.1b": _llama(2048, 22, 32, 4, 5632, 32000, 2048),
    "llama3.2-1b": _llama(2048, 16, 32, 8, 8192, 128256, 131072, 5e5, True),
    "llama2-7b": _llama(4096, 32, 32, 32, 11008, 32000, 4096),
    "mistral-7b": _llama(4096, 32, 32, 8, 14336, 32768, 32768, 1e6, model_type="mistral", head_dim=128, sliding_window=None),
    "llama3-8b": _llama(4096, 32, 32, 8, 14336, 128256, 8192, 5e5),
    "qwen3-8b": _qwen3(4096, 36, 32, 12288, False),
}
LENGTHS = (128, 512, 2048, 8192, 32768)
RANKS = (16, 4, 64)  # the first of an axis is its base value
TARGETS = ("all", "qv")
DROPOUTS = (0.0, 0.1)
MANY_TOKENS, MOST_ROWS = 16384, 64  # of a batch of many rows
PACKED = (30, 300)  # tokens of the shortest and the longest row


@dataclasses.dataclass(frozen=True)
class Case:
    model: str
    layers: int  # of the model, or fewer
    batch: int
    seq_len: int
    shortest: int = 0  # rows of so many tokens to seq_len; 0: all have seq_len
    rank: int = RANKS[0]
    targets: str = TARGETS[0]
    dropout: float = DROPOUTS[0]
    recompute: bool = False

    @property
    def name(self):
        rows = f"{self.batch}x{self.shortest}-{self.seq_len}" if self.shortest else f"{self.batch}x{self.seq_len}"
        whole = self.layers == n_layers(MODELS[self.model])
        return (self.model + ("" if whole else f"/{self.layers}") + f":{rows}:r{self.rank}:{self.targets}"
                + (f":dropout{self.dropout:g}" if self.dropout else "") + (":recompute" if self.recompute else ""))

    @property
    def tokens(self):
        return self.batch * (self.shortest + self.seq_len) // 2 if self.shortest else self.batch * self.seq_len

    @property
    def padded_tokens(self):
        return self.batch * self.seq_len

    def config(self):
        config = dict(MODELS[self.model])
        config["n_layer" if "n_layer" in config else "num_hidden_layers"] = self.layers
        return config

    def target_names(self):
        if self.targets == "all":
            return "all-linear"
        return "c_attn" if MODELS[self.model]["model_type"] == "gpt2" else "q_proj,v_proj"


def n_layers(config):
    return config.get("n_layer") or config["num_hidden_layers"]


def _sizes(config):
    """C, F, vocabulary, and the widths of queries, and of keys and values together."""
    if config["model_type"] == "gpt2":
        c = config["n_embd"]
        return c, 4 * c, config["vocab_size"], c, 2 * c
    c, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or c // heads
    return c, config["intermediate_size"], config["vocab_size"], heads * head, 2 * config["num_key_value_heads"] * head


def parameters(case):
    """Of the blocks, and of the head."""
    c, f, vocab, q, kv = _sizes(case.config())
    products = 2 if case.config()["model_type"] == "gpt2" else 3
    return case.layers * (c * (2 * q + kv) + products * c * f), vocab * c


def peer_bytes(case):
    """An estimate of a compiled peer's peak in bfloat16: 1.01 to 1.07 times what was measured for five models.

    For each token and layer it keeps some 4 values of the stream's width, 1.5 of q, k and v and 3.5 of the MLP's, and for
    each token the logits in bfloat16 and float32 with their gradients. With recomputation: a layer's input, and one layer
    whole.
    """
    c, f, vocab, q, kv = _sizes(case.config())
    blocks, head = parameters(case)
    untied = not case.config().get("tie_word_embeddings", True)
    kept = int(2 * (4 * c + 1.5 * (q + kv) + 3.5 * f))
    per_token = case.layers * 2 * c + 2 * kept if case.recompute else case.layers * kept
    return 2 * (blocks + head * (2 if untied else 1)) + case.padded_tokens * (per_token + 12 * vocab)


def estimated_seconds(case, steps):
    """What measuring both sides takes: mostly compiling and starting."""
    blocks, head = parameters(case)
    q = _sizes(case.config())[3]
    flops = 4 * case.tokens * (blocks + head) + 6 * case.layers * q * case.tokens * case.seq_len
    return 40 + 2 * steps * flops * (1.4 if case.recompute else 1) / 2e14


def generate(memory_bytes, max_layers=0, full=False, models=MODELS, lengths=LENGTHS):
    """(cases, left_out). Every model runs with every length, in one row and in many, at the base values of the other axes;
    these are then changed one at a time (`full`: in all combinations), at the shortest and the middle length. Packed rows
    are one more length. A case that does not fit is measured with recomputation on both sides, and left out if it does
    not fit then either. Cases of one model and one adapter follow each other: they share what is built and compiled."""
    cases, left_out = [], []
    for model in models:
        whole = n_layers(MODELS[model])
        layers = min(whole, max_layers) if max_layers else whole
        most = MODELS[model].get("n_positions", math.inf)  # learned positions end; rotary ones go on
        fitting = [n for n in lengths if n <= most]
        rows = [(1, n, 0) for n in fitting]
        rows += [(r, n, 0) for n in fitting if (r := min(MOST_ROWS, MANY_TOKENS // n)) > 1]
        packed = [(MOST_ROWS, PACKED[1], PACKED[0])] if PACKED[1] <= max(fitting, default=0) else []
        varied_lengths = {fitting[0], fitting[len(fitting) // 2]} if fitting else set()
        for rank in RANKS:
            for targets in TARGETS:
                for dropout in DROPOUTS:
                    changed = (rank != RANKS[0]) + (targets != TARGETS[0]) + (dropout != DROPOUTS[0])
                    if changed > 1 and not full:
                        continue
                    chosen = rows if full or not changed else [r for r in rows if r[1] in varied_lengths]
                    for batch, seq_len, shortest in chosen + packed:
                        case = Case(model, layers, batch, seq_len, shortest, rank, targets, dropout)
                        for recompute in (False, True):
                            case = dataclasses.replace(case, recompute=recompute)
                            if peer_bytes(case) <= 0.85 * memory_bytes:
                                cases.append(case)
                                break
                        else:
                            left_out.append(case)
    return cases, left_out


def chunk(cases, i, n, steps):
    """The i-th of n shares (from 1) that take about as long as each other."""
    total = sum(estimated_seconds(c, steps) for c in cases)
    share, spent = [], 0.0
    for case in cases:
        seconds = estimated_seconds(case, steps)
        if min(n, int((spent + seconds / 2) * n / total) + 1) == i:
            share.append(case)
        spent += seconds
    return share
