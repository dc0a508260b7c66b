#!/usr/bin/env python3
"""Writes beams.json: what transformers' generate() finds by beam search, and greedily without repeated n-grams, with the
tiny model of make_peft_golden.py on random prompts.

    python tests/golden/make_beam_golden.py          (torch 2.15, transformers 5.24, on a CPU)

Computed in float32 and float64; a case in which rounding decides is left out. Each case: the settings, the prompt's ids and
the new ids, without the end token.
"""
import json
import pathlib
import random

import torch
import transformers

HERE = pathlib.Path(__file__).parent
MAX_TOKENS = 16


def generate(model, case):
    prompt = torch.tensor([case["prompt"]])
    model.generation_config.eos_token_id = None
    out = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, num_beams=case["beams"],
        length_penalty=case["length_penalty"] if case["beams"] > 1 else None, early_stopping=False,
        no_repeat_ngram_size=case["no_repeat_ngram"], repetition_penalty=case["repetition_penalty"],
        eos_token_id=case["stop_ids"] or None, pad_token_id=0, max_new_tokens=case["max_tokens"])
    ids = out[0, prompt.shape[1]:].tolist()
    end = next((i for i, x in enumerate(ids) if x in case["stop_ids"]), None)
    return {"ids": ids[:end], "stopped": end is not None}


def main():
    torch.manual_seed(0)
    rng = random.Random(3)
    models = [transformers.LlamaForCausalLM.from_pretrained(HERE / "peft/tiny", dtype=t, attn_implementation="eager").eval()
              for t in (torch.float32, torch.float64)]
    cases = []
    while len(cases) < 160:
        case = {"beams": rng.choice([1, 2, 3, 4, 7]), "length_penalty": rng.choice([1.0, 1.0, 0.0, 0.6, 2.0, -1.0]),
                "no_repeat_ngram": rng.choice([0, 0, 1, 2, 3]), "repetition_penalty": rng.choice([1.0, 1.0, 1.3]),
                "stop_ids": sorted(rng.sample(range(300), rng.choice([0, 1, 30, 30, 60]))),
                "max_tokens": rng.choice([1, 2, 5, MAX_TOKENS, MAX_TOKENS]),
                "prompt": [rng.randrange(300) for _ in range(rng.randrange(1, 20))]}
        if case["beams"] == 1:
            case["length_penalty"] = 1.0
        if case["beams"] * (1 + max(1, len(case["stop_ids"]))) > 300:
            continue
        found = [generate(m, case) for m in models]
        if found[0] == found[1]:
            cases.append({**case, **found[0]})
        else:
            print("rounding decides:", case)
    print(sum(c["stopped"] for c in cases), "of", len(cases), "ended by themselves")
    text = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
    (HERE / "beams.json").write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
    main()
