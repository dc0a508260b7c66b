"""Makes tests/golden/peft/virtual_tokens.json and virtual_tokens/: prompt tuning, prefix tuning and LLaMA-Adapter as
Hugging Face PEFT computes them on the tiny models of tests/golden/models.

    python make_virtual_token_golden.py

Made with torch 2.15, transformers 5.24, peft 0.21.2 on a CPU. Steps, rows and losses are those of make_peft_golden.py.

Initial values come from its formula: trainable tensor n in the order of sorted names (as the model calls them) is
formula_values(n, count) * `bound`. A gate of LLaMA-Adapter is 0, as PEFT makes it. For `text`, the prompt is PEFT's TEXT
initialisation from the token ids `text`.

Per case: the settings; `names`, name -> shape of the trainable tensors; losses, losses_f64, one per step; `greedy`, the
tokens that continue `prompt` after the last step; and the adapter in virtual_tokens/<case>/, as PEFT saves it after
the last step, with `after`, the loss over all rows that it then has.
"""

import json
import pathlib
import shutil
import sys

import numpy as np
import torch
import transformers
from peft import AdaptionPromptConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from make_peft_golden import OUT, file_name, formula_values, loss_sum, train

BASE = dict(batch=3, grad_accum=1, steps=10, lr=1e-2, schedule="constant", warmup=0, weight_decay=0.01, clip=0.0)
CASES = {
    "prompt": dict(method="prompt", model="tied_gqa", n=5, bound=0.5),
    "prompt_text": dict(method="prompt", model="gemma3", n=7, text=[3, 9, 27], bound=0),
    "prompt_gpt2": dict(method="prompt", model="gpt2", n=3, bound=0.5),
    "prefix": dict(method="prefix", model="tied_gqa", n=5, bound=1.0),
    "prefix_window": dict(method="prefix", model="mistral_window", n=6, bound=1.0),
    "prefix_gemma3": dict(method="prefix", model="gemma3", n=4, bound=1.0),
    "prefix_gpt2": dict(method="prefix", model="gpt2", n=3, bound=1.0),
    "prefix_qwen3_odd": dict(method="prefix", model="qwen3_odd", n=3, bound=1.0),
    "prefix_mlp": dict(method="prefix", model="tied_gqa", n=4, hidden=10, bound=0.5),
    "adapter": dict(method="llama-adapter", model="tied_gqa", n=4, layers=1, bound=1.0),
    "adapter_mistral": dict(method="llama-adapter", model="mistral_window", n=3, layers=2, bound=1.0),
    "adapter_gpt2": dict(method="llama-adapter", model="gpt2", n=5, layers=2, bound=1.0),
}


def make_rows():
    """Rows longer than the models' windows, but short enough for GPT-2's positions with virtual tokens."""
    generator = np.random.RandomState(8)
    return [([int(i) for i in generator.randint(0, 67, n)], start)
            for n, start in [(40, 0), (31, 12), (55, 5), (11, 10), (48, 1), (22, 3)]]


def attach(case, dtype):
    folder = OUT.parent / "models" / case["model"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    if case["method"] == "prompt":
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=case["n"])
    elif case["method"] == "prefix":
        config = PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=case["n"], prefix_projection="hidden" in case,
            encoder_hidden_size=case.get("hidden"))
    else:
        config = AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=case["n"], adapter_layers=case["layers"])
    embedded = None
    if "text" in case:  # what PEFT's TEXT does with a tokenizer's ids, on the module that it does it with
        ids = (case["text"] * case["n"])[: case["n"]]
        embedded = model.get_input_embeddings()(torch.tensor(ids)).detach()
    model = get_peft_model(model, config).to(dtype)
    trainable = sorted((n, p) for n, p in model.named_parameters() if p.requires_grad)
    for n, (name, p) in enumerate(trainable):
        if name.endswith("adaption_gate"):
            continue
        values = embedded if embedded is not None else torch.from_numpy(
            formula_values(n, p.numel()) * np.float32(case["bound"]))
        p.data = values.reshape(p.shape).to(dtype)
    return model, {file_name(name): list(p.shape) for name, p in trainable}


def alone(model, rows):
    """Row by row: PEFT's masks of padded rows and windows are not what is compared."""
    parts = [loss_of_row(model, row) for row in rows]
    return sum(total for total, _ in parts), sum(n for _, n in parts)


def loss_of_row(model, row):
    """The loss over the tokens from `start` on. PEFT gives the labels of a prompt's tokens -100 and lays the text's behind
    them, so that the last of them predicts the text's first token."""
    ids, start = row
    behind_prompt = model.peft_config["default"].peft_type == "PROMPT_TUNING"
    first = start if behind_prompt else max(start, 1)
    logits = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0]
    logits = logits[len(logits) - len(ids) + first - 1 : -1]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[first:]), reduction="sum")
    if behind_prompt:
        labels = torch.tensor([[-100] * start + ids[start:]])
        with torch.no_grad():
            theirs = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), labels=labels).loss
        assert abs(theirs * len(ids[first:]) / loss - 1) < 1e-5
    return loss, len(ids) - first


def greedy(model, prompt, n):
    """Without a cache: transformers 5.24 ignores the past_key_values with which PEFT's generate() brings the prefix."""
    ids = list(prompt)
    for _ in range(n):
        logits = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0, -1]
        ids.append(int(logits.argmax()))
    return ids[len(prompt):]


def main():
    torch.use_deterministic_algorithms(True)
    rows, out = make_rows(), {}
    folder = OUT / "virtual_tokens"
    shutil.rmtree(folder, ignore_errors=True)
    for name, case in CASES.items():
        settings = {**BASE, **case}
        first = 0 if case["method"] == "prompt" else 1
        model, names = attach(case, torch.float32)
        result = dict(names=names, losses=train(model, settings, rows, [], loss_sum=alone, first=first)["losses"])
        exact, _ = attach(case, torch.float64)
        result["losses_f64"] = train(exact, settings, rows, [], loss_sum=alone, first=first)["losses"]
        a, b = np.array(result["losses"]), np.array(result["losses_f64"])
        print(name, "float32 against float64:", np.abs(a / b - 1).max(), file=sys.stderr)
        model.save_pretrained(folder / name, save_embedding_layers=False)
        (folder / name / "README.md").unlink(missing_ok=True)
        config = json.loads((folder / name / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = None
        (folder / name / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        with torch.no_grad():
            total, count = alone(model, rows)
            result["after"] = (total / count).item()
            result["greedy"] = greedy(model, rows[1][0][:9], 12)
        out[name] = {**case, **result}
    text = json.dumps({**BASE, "rows": rows, "prompt": rows[1][0][:9], "cases": out}, separators=(",", ":"))
    (OUT / "virtual_tokens.json").write_text(text.replace('{"method"', '\n{"method"') + "\n")


if __name__ == "__main__":
    main()
