"""The cases of the matrix: which there are follows from axes and one rule of memory, never from a list of cases."""

import dataclasses
import json
import math
import pathlib

SHAPES = json.loads((pathlib.Path(__file__).parent.parent / "src/modelfile/named_shapes.json").read_text(encoding="utf-8"))
MODELS = {name: SHAPES[name] for name in (
    "smollm2-135m", "gpt2-124m", "gemma3-270m", "gpt2-medium", "qwen3-0.6b", "gemma3-1b", "tinyllama-1.1b", "llama3.2-1b",
    "llama2-7b", "mistral-7b", "llama3-8b", "qwen3-8b")}
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
