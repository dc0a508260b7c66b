"""Makes tests/golden/peft/: what Hugging Face PEFT computes, so that our tests can compare without Python.

    python make_peft_golden.py tiny                        tiny model, its data, adapters and numbers
    python make_peft_golden.py variants                    variants.json and folders: LoRA's variants on the tiny model
    python make_peft_golden.py smoothed                    smoothed.json: ten steps of the tiny model with smoothed labels
    python make_peft_golden.py families                    families.json: ten steps of every family's tiny model
    python make_peft_golden.py smollm2 MODEL.gguf DATA     smollm2.json; DATA holds e2e_train.jsonl, e2e_test.jsonl
    python make_peft_golden.py adapter MODEL.gguf CASE DIR only writes the initial adapter of a SmolLM2 case

Made with torch 2.15, transformers 5.23, peft 0.21.2 on a CPU, in float32.

What PEFT computes here. ids = encode(prompt + completion) + [eos], supervised from len(encode(prompt)). A step
takes the next `batch` rows in file order (wrapping round), `grad_accum` times; its loss is the mean over all
supervised tokens of the step, each predicted from the tokens before it. AdamW: betas 0.9 and 0.999, eps 1e-8,
decoupled decay. Clipping scales the whole gradient to the given norm. Step k, counted from 0, of a linear
schedule with w warm-up steps and n in all uses lr * (k + 1) / w while k < w, then lr * (n - k) / (n - w).

Initial adapters come from a formula, not from a random generator of some library, so that a test in any language
can rebuild them bit for bit. The parameters are numbered n = 0, 1, ... in the order of their sorted names in the
adapter file; element i of parameter n is, with all operations on float32 exact but the last product,

    u = splitmix64(2^32 n + i) >> 40;   value = ((2u + 1) / 2^24 - 1) * bound

bound = 1 / sqrt(in) for A (in: its number of columns), which is the range of the usual Kaiming initialisation, and
`b_bound` for B (0: all zero).

Files: <case>.json holds the settings and
  losses, grad_norms, tokens   one per step; losses_f64 the same computed in float64, which shows how far float32
                               rounding alone moves them
  eval_before, eval_after      loss over `eval_rows` rows, before the first and after the last step
<case>.initial/, <case>.after/ PEFT adapter folders, before the first step and after step `after_step` (tiny only)
variants.json                  per case of VARIANT_CASES: its settings, losses and losses_f64, grad_norms, eval_after;
                               with an init that changes the base also `products`: A and B after the last step as
                               PEFT converts them, module -> elements of B A
<case>.after/                  of the DoRA case, after its last step
families.json                  per model of ../models: the settings, rows (ids and where supervision begins), tensors
                               (name -> shape, as PEFT saves them), losses, losses_f64, and the bits of PEFT's config
                               that depend on the family: target_modules, fan_in_fan_out
<case>.logits.safetensors      ids (T), and logits (T,V) of the model with the adapter <case>.after (tiny only)
"""

import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file, save_file

OUT = pathlib.Path(__file__).parent / "peft"
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

TINY_CASES = {
    "all_linear": dict(
        rank=8, alpha=16, targets=ALL_LINEAR, b_bound=0.0, lr=5e-3, schedule="constant", warmup=0,
        weight_decay=0.0, clip=0.0, batch=4, grad_accum=1, steps=20, after_step=10, eval_rows=8),
    "subset": dict(
        rank=3, alpha=8, targets=["q_proj", "v_proj", "down_proj"], b_bound=0.2, lr=1e-2,
        schedule="linear", warmup=4, weight_decay=0.1, clip=0.5, batch=2, grad_accum=3, steps=20,
        after_step=20, eval_rows=8),
}
VARIANT_BASE = dict(
    rank=4, alpha=8, targets=["q_proj", "v_proj", "down_proj"], b_bound=0.2, lr=5e-3, schedule="constant", warmup=0,
    weight_decay=0.05, clip=1.0, batch=3, grad_accum=2, steps=10, after_step=10, eval_rows=8)
# `lora` goes to LoraConfig as it is.
VARIANT_CASES = {
    "rslora": dict(lora=dict(use_rslora=True)),
    "patterns": dict(lora=dict(rank_pattern={r"layers\.0\..*": 2, "down_proj": 6}, alpha_pattern={"v_proj": 3}, use_rslora=True)),
    "layers": dict(lora=dict(layers_to_transform=[1])),
    "loraplus": dict(lora={}, loraplus_ratio=4),
    "pissa": dict(lora=dict(init_lora_weights="pissa")),
    "olora": dict(lora=dict(init_lora_weights="olora", use_rslora=True)),
    "dora": dict(lora=dict(use_dora=True)),
    "dora_loraplus": dict(lora=dict(use_dora=True, use_rslora=True), loraplus_ratio=4),
}
SMOLLM2_CASES = {
    "smollm2": dict(
        rank=8, alpha=16, targets=ALL_LINEAR, b_bound=0.0, lr=5e-4, schedule="constant", warmup=0,
        weight_decay=0.0, clip=0.0, batch=8, grad_accum=1, steps=60, after_step=10, eval_rows=64),
    "smollm2_subset": dict(
        rank=4, alpha=6, targets=["q_proj", "v_proj", "down_proj"], b_bound=0.02, lr=2e-4,
        schedule="constant", warmup=0, weight_decay=0.0, clip=1.0, batch=4, grad_accum=2, steps=10,
        after_step=10, eval_rows=16),
}


# ---- initial adapters ----------------------------------------------------------------------------

def formula_values(n, count):
    """Elements 0 .. count-1 of parameter n, in (-1, 1), exact in float32."""
    with np.errstate(over="ignore"):
        z = np.arange(count, dtype=np.uint64) + np.uint64((n << 32) & (2**64 - 1))
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    u = (z >> np.uint64(40)).astype(np.float64)
    return ((2 * u + 1) / 2**24 - 1).astype(np.float32)


def file_name(parameter_name):
    return parameter_name.replace(".default.", ".")


def fill_adapter(model, b_bound):
    named = [(file_name(n), p) for n, p in model.named_parameters() if p.requires_grad]
    for n, (name, p) in enumerate(sorted(named)):
        if ".lora_magnitude_vector." in name:  # stays as it is: the norms of W's rows
            continue
        bound = np.float32(1 / np.sqrt(p.shape[1])) if ".lora_A." in name else np.float32(b_bound)
        values = formula_values(n, p.numel()) * bound
        p.data = torch.from_numpy(values).reshape(p.shape).to(p.dtype)


def attach(model, case):
    config = LoraConfig(
        r=case["rank"], lora_alpha=case["alpha"], target_modules=sorted(case["targets"]), lora_dropout=0.0,
        bias="none", task_type="CAUSAL_LM", **case.get("lora", {}))
    model = get_peft_model(model, config)
    if not case.get("lora", {}).get("init_lora_weights"):
        fill_adapter(model, case["b_bound"])
    return model


def save_adapter(model, folder):
    """PEFT's own files, with its randomly ordered list of targets sorted so that a second run is equal."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"] = sorted(config["target_modules"])
    config["base_model_name_or_path"] = None
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


# ---- training ------------------------------------------------------------------------------------

def read_rows(path, tokenizer, limit=None):
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines()[:limit]:
        row = json.loads(line)
        encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = encode(row["prompt"] + row["completion"]) + [tokenizer.eos_token_id]
        rows.append((ids, len(encode(row["prompt"]))))
    return rows


def loss_sum(model, rows, smoothing=0.0):
    """Sum of -log p (with smoothed labels) over the supervised tokens of the rows, and their number."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for b, (row, start) in enumerate(rows):
        ids[b, : len(row)] = torch.tensor(row)
        labels[b, start : len(row)] = ids[b, start : len(row)]
        mask[b, : len(row)] = 1
    labels[:, 0] = -100
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    total = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum",
                            label_smoothing=smoothing)
    return total, int((labels != -100).sum())


def evaluate(model, rows):
    total = count = 0
    with torch.no_grad():
        for i in range(0, len(rows), 8):
            s, n = loss_sum(model, rows[i : i + 8])
            total, count = total + s.item(), count + n
    return total / count if count else None


def learning_rate(case, k):
    if k < case["warmup"]:
        return case["lr"] * (k + 1) / case["warmup"]
    if case["schedule"] == "linear":
        return case["lr"] * (case["steps"] - k) / (case["steps"] - case["warmup"])
    return case["lr"]


def loss_sum_alone(model, rows):
    """The same row by row: a padded token whose window holds padding only is NaN in transformers."""
    parts = [loss_sum(model, [row]) for row in rows]
    return sum(total for total, _ in parts), sum(n for _, n in parts)


def train(model, case, rows, eval_rows, on_step=lambda k, model: None, loss_sum=loss_sum, first=1):
    """`first`: the first token of a row that is predicted, 0 where virtual tokens stand before it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    adamw = dict(lr=case["lr"], betas=(0.9, 0.999), eps=1e-8)
    if ratio := case.get("loraplus_ratio"):
        optimizer = create_loraplus_optimizer(
            model, torch.optim.AdamW, loraplus_lr_ratio=ratio, loraplus_weight_decay=case["weight_decay"], **adamw)
    else:
        optimizer = torch.optim.AdamW(parameters, weight_decay=case["weight_decay"], **adamw)
    factors = [group["lr"] / case["lr"] for group in optimizer.param_groups]
    out = dict(losses=[], grad_norms=[], tokens=[], eval_before=evaluate(model, eval_rows))
    next_row = 0
    for k in range(case["steps"]):
        micro = []
        for _ in range(case["grad_accum"]):
            micro.append([rows[(next_row + i) % len(rows)] for i in range(case["batch"])])
            next_row += case["batch"]
        count = sum(len(ids) - max(start, first) for part in micro for ids, start in part)
        loss = 0.0
        for part in micro:
            total, _ = loss_sum(model, part)
            (total / count).backward()
            loss += total.item() / count
        norm = torch.sqrt(sum((p.grad.double() ** 2).sum() for p in parameters)).item()
        if case["clip"] > 0:
            torch.nn.utils.clip_grad_norm_(parameters, case["clip"])
        for group, factor in zip(optimizer.param_groups, factors):
            group["lr"] = learning_rate(case, k) * factor
        optimizer.step()
        optimizer.zero_grad()
        out["losses"].append(loss)
        out["grad_norms"].append(norm)
        out["tokens"].append(count)
        print(f"step {k + 1} of {case['steps']}: loss {loss:.6f}", file=sys.stderr)
        on_step(k + 1, model)
    out["eval_after"] = evaluate(model, eval_rows)
    return out


def write_json(path, case, result):
    path.write_text(json.dumps({**case, **result}, indent=1) + "\n")


# ---- the tiny model ------------------------------------------------------------------------------

def tiny_tokenizer(folder):
    """Byte-level BPE as SmolLM2 has it (digits alone, GPT-2's split), 300 tokens, trained on our own rows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    text = [json.loads(line) for line in (OUT / "rows.jsonl").read_text().splitlines()]
    tokenizer.train_from_iterator([r["prompt"] + r["completion"] for r in text], trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.save_pretrained(folder)
    return fast


def make_tiny():
    folder = OUT / "tiny"
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = tiny_tokenizer(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    generator = torch.Generator().manual_seed(1)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    for name, p in sorted(model.named_parameters()):
        noise = torch.randn(p.shape, generator=generator)
        p.data = (1 + 0.1 * noise if "norm" in name else noise / p.shape[-1] ** 0.5).to(torch.bfloat16)
    model.save_pretrained(folder)
    rows = read_rows(OUT / "rows.jsonl", tokenizer)

    def load(dtype):
        return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")

    for name, case in TINY_CASES.items():
        eval_rows = rows[-case["eval_rows"] :]
        adapted = attach(load(torch.float32), case)
        save_adapter(adapted, OUT / f"{name}.initial")
        after = OUT / f"{name}.after"
        result = train(adapted, case, rows, eval_rows,
                       lambda k, m: save_adapter(m, after) if k == case["after_step"] else None)
        exact = train(attach(load(torch.float64), case).double(), case, rows, eval_rows)
        result["losses_f64"] = exact["losses"]
        write_json(OUT / f"{name}.json", case, result)
        reread = PeftModel.from_pretrained(load(torch.float32), after).eval()
        ids = torch.tensor(rows[0][0])
        with torch.no_grad():
            logits = reread(input_ids=ids[None]).logits[0]
        save_file({"ids": ids.float(), "logits": logits.contiguous()}, OUT / f"{name}.logits.safetensors")


# ---- LoRA's variants ------------------------------------------------------------------------------

def make_variants():
    folder = OUT / "tiny"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = read_rows(OUT / "rows.jsonl", tokenizer)

    def load():
        return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")

    out = {}
    for name, own in VARIANT_CASES.items():
        case = {**VARIANT_BASE, **own}
        changes_base = "init_lora_weights" in case["lora"]
        model = attach(load(), case)
        with tempfile.TemporaryDirectory() as scratch:
            if changes_base:
                model.peft_config["default"].init_lora_weights = True
                model.save_pretrained(scratch + "/initial", save_embedding_layers=False)
            result = train(model, case, rows, rows[-case["eval_rows"] :])
            result["losses_f64"] = train(attach(load(), case).double(), case, rows, [])["losses"]
            if changes_base:
                model.save_pretrained(
                    scratch + "/after", save_embedding_layers=False,
                    path_initial_model_for_weight_conversion=scratch + "/initial")
                config = json.loads(pathlib.Path(scratch, "after", "adapter_config.json").read_text())
                result["converted"] = {k: config[k] for k in ("r", "lora_alpha", "init_lora_weights", "use_rslora")}
                tensors = load_file(scratch + "/after/adapter_model.safetensors")
                result["products"] = {
                    k.removesuffix(".lora_A.weight").removeprefix("base_model.model."): (
                        tensors[k.replace("_A", "_B")].double() @ a.double()).flatten()[::97].tolist()
                    for k, a in sorted(tensors.items()) if ".lora_A." in k and ".layers.0." in k}
        if name == "dora":
            save_adapter(model, OUT / "dora.after")
            ids = torch.tensor(rows[0][0])
            with torch.no_grad():
                result["last_logits"] = model.eval()(input_ids=ids[None]).logits[0, -1].tolist()
                result["ids"] = rows[0][0]
        out[name] = {**case, **result}
        a, b = np.array(result["losses"]), np.array(result["losses_f64"])
        print(name, "float32 against float64:", np.abs(a / b - 1).max(), file=sys.stderr)
    text = json.dumps(out, separators=(",", ":"))
    (OUT / "variants.json").write_text(text.replace('},"', '},\n"') + "\n")


# ---- smoothed labels ----

def make_smoothed():
    """The case `subset` with smoothed labels; its evaluations are plain."""
    case = {**TINY_CASES["subset"], "label_smoothing": 0.1, "steps": 10, "after_step": 10}
    tokenizer = transformers.AutoTokenizer.from_pretrained(OUT / "tiny")
    rows = read_rows(OUT / "rows.jsonl", tokenizer)

    def run(dtype):
        model = transformers.LlamaForCausalLM.from_pretrained(OUT / "tiny", dtype=dtype, attn_implementation="eager")
        return train(attach(model, case).to(dtype), case, rows, rows[-case["eval_rows"] :],
                     loss_sum=lambda m, r: loss_sum(m, r, case["label_smoothing"]))

    write_json(OUT / "smoothed.json", case, {**run(torch.float32), "losses_f64": run(torch.float64)["losses"]})


# ---- every family --------------------------------------------------------------------------------

FAMILIES = ["tied_gqa", "mistral_window", "qwen2", "qwen2_window", "qwen3", "qwen3_odd", "gemma3", "gemma3_odd",
            "gpt2", "gpt2_odd"]
FAMILY_CASE = dict(
    rank=3, alpha=6, targets="all-linear", b_bound=0.1, lr=1e-2, schedule="constant", warmup=0, weight_decay=0.01,
    clip=0.0, batch=3, grad_accum=1, steps=10)


def make_families():
    """The models that make_model_golden.py wrote, on rows longer than their windows."""
    out = {}
    generator = np.random.RandomState(5)
    rows = [([int(i) for i in generator.randint(0, 67, n)], start) for n, start in [
        (60, 0), (37, 12), (75, 5), (21, 20), (64, 1), (50, 30)]]
    for name in FAMILIES:
        folder = OUT.parent / "models" / name

        def adapted(dtype):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, attn_implementation="eager")
            config = LoraConfig(
                r=FAMILY_CASE["rank"], lora_alpha=FAMILY_CASE["alpha"], target_modules="all-linear",
                lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
                fan_in_fan_out=model.config.model_type == "gpt2")
            model = get_peft_model(model, config).to(dtype)
            fill_adapter(model, FAMILY_CASE["b_bound"])
            return model

        model = adapted(torch.float32)
        config = model.peft_config["default"]
        out[name] = dict(
            target_modules=sorted({m.rsplit(".", 1)[-1] for m in config.target_modules}),
            fan_in_fan_out=config.fan_in_fan_out,
            tensors={k: list(v.shape) for k, v in sorted(get_peft_model_state_dict(model).items())},
            losses=train(model, FAMILY_CASE, rows, [], loss_sum=loss_sum_alone)["losses"],
            losses_f64=train(adapted(torch.float64), FAMILY_CASE, rows, [], loss_sum=loss_sum_alone)["losses"])
        a, b = np.array(out[name]["losses"]), np.array(out[name]["losses_f64"])
        print(name, "float32 against float64:", np.abs(a / b - 1).max(), file=sys.stderr)
    text = json.dumps({**FAMILY_CASE, "rows": rows, "models": out}, separators=(",", ":"))
    (OUT / "families.json").write_text(text.replace('{"target_modules"', '\n{"target_modules"') + "\n")


# ---- SmolLM2 -------------------------------------------------------------------------------------

def load_smollm2(path, dtype=torch.float32):
    path = pathlib.Path(path).resolve()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=dtype, attn_implementation="sdpa")
    return model, tokenizer


def make_smollm2(path, data):
    data = pathlib.Path(data)
    for name, case in SMOLLM2_CASES.items():
        model, tokenizer = load_smollm2(path)
        rows = read_rows(data / "e2e_train.jsonl", tokenizer)
        eval_rows = read_rows(data / "e2e_test.jsonl", tokenizer, case["eval_rows"])
        probe = {}

        def sample(k, m):
            """A few elements of every adapter matrix after `after_step` steps."""
            if k == case["after_step"]:
                for n, p in sorted((file_name(n), p) for n, p in m.named_parameters() if p.requires_grad):
                    flat = p.data.flatten()
                    probe[n] = flat[:: max(1, flat.numel() // 4)][:4].tolist()

        result = train(attach(model, case), case, rows, eval_rows, sample)
        keep = [n for n in probe if any(f".layers.{i}." in n for i in (0, 14, 29))]
        result["after_samples"] = {n: probe[n] for n in keep}
        write_json(OUT / f"{name}.json", case, result)


def make_adapter(path, name, folder):
    model, _ = load_smollm2(path)
    save_adapter(attach(model, SMOLLM2_CASES[name]), pathlib.Path(folder))


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    OUT.mkdir(exist_ok=True)
    what, *rest = sys.argv[1:] or ["help"]
    if what == "tiny" and not rest:
        make_tiny()
    elif what == "variants" and not rest:
        make_variants()
    elif what == "smoothed" and not rest:
        make_smoothed()
    elif what == "families" and not rest:
        make_families()
    elif what == "smollm2" and len(rest) == 2:
        make_smollm2(*rest)
    elif what == "adapter" and len(rest) == 3:
        make_adapter(*rest)
    else:
        sys.exit(__doc__)
