"""Makes tests/golden/methods/full_*.json: full fine-tuning by plain PyTorch on models of transformers.

    python make_full_golden.py [CASE...]                             (torch, transformers 5)

Each case trains every weight of a model of ../models/ for ten steps, in float32 on a CPU, on the rows of
../peft/families.json (ids and where supervision begins), three a step, with AdamW at a constant rate. Weight decay
applies to matrices, not to gains and biases, as in transformers' Trainer.

<case>.json holds the settings and
  losses, losses_f64    one per step, and the same computed in float64: how far rounding alone moves them
  gradients             name -> the sum, and the norm, of the first step's gradient in float64
  after                 name -> the first four elements after ten steps, as the model's file holds them
  ids, logits           a text, and the logits of its last token after ten steps
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers

from make_method_golden import BATCH, HERE, OUT, STEPS, loss_sum

CASES = {
    "full_llama": dict(model="mistral_linear", lr=1e-3),  # untied head
    "full_biases": dict(model="biases", lr=1e-3),
    "full_qwen3": dict(model="qwen3", lr=1e-3),
    "full_gemma3": dict(model="gemma3", lr=1e-3),
    "full_gpt2": dict(model="gpt2", lr=1e-3),
}
DECAY = 0.01


def train(case, dtype, rows):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        HERE / "models" / case["model"], dtype=dtype, attn_implementation="eager").to(dtype).eval()
    # torch gives the padding token's embedding no gradient; these rows have it as a token like others
    model.get_input_embeddings().padding_idx = None
    named = dict(model.named_parameters())  # a tied head once
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in named.values() if p.dim() > 1], "weight_decay": DECAY},
         {"params": [p for p in named.values() if p.dim() == 1], "weight_decay": 0}],
        lr=case["lr"], betas=(0.9, 0.999), eps=1e-8)
    losses, gradients = [], None
    for k in range(STEPS):
        parts = [loss_sum(model, rows[(BATCH * k + i) % len(rows)]) for i in range(BATCH)]
        loss = sum(total for total, _ in parts) / sum(n for _, n in parts)
        loss.backward()
        gradients = gradients or {n: [p.grad.sum().item(), p.grad.norm().item()] for n, p in named.items()}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, named, losses, gradients


def main(only):
    families = json.loads((HERE / "peft" / "families.json").read_text())
    for name, case in CASES.items():
        if only and name not in only:
            continue
        vocab = json.loads((HERE / "models" / case["model"] / "config.json").read_text())["vocab_size"]
        rows = [([i % vocab for i in ids], start) for ids, start in families["rows"]]
        model, named, losses, _ = train(case, torch.float32, rows)
        _, _, exact, gradients = train(case, torch.float64, rows)
        print(name, "float32 against float64:", np.abs(np.array(losses) / np.array(exact) - 1).max(), file=sys.stderr)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([rows[1][0]])).logits[0, -1]
        result = dict(
            **case, weight_decay=DECAY, rows=rows, losses=losses, losses_f64=exact, gradients=gradients,
            after={n: p.flatten()[:4].tolist() for n, p in named.items()}, ids=rows[1][0], logits=logits.tolist())
        (OUT / f"{name}.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    main(sys.argv[1:])
