"""Opens with transformers what finetune --method full writes: check_full.py BUILD [MODEL.gguf]

finetune trains all weights of the tiny model of peft/ (and with MODEL.gguf of that one) for a few steps. The folder then is a
model of transformers: it uses every tensor, has the same evaluation loss as our evaluate program, and continues a prompt
with the same tokens as our generate program. Prints a line a check and ends with their number; exits 1 if one failed.
The loss is in float64: in float32, that of a real model differs from it by more than ours. (torch, transformers 5)
"""

import json
import math
import pathlib
import sys
import tempfile

import torch
import transformers

from check_methods import PROMPT, ROWS, TINY, check, loss_of, read_rows, results, run


def check_folder(what, tools, model, folder):
    run(tools / "finetune", "--model", model, "--data", ROWS, "--out", folder, "--method", "full", "--steps", 6, "--batch", 4,
        "--seq-len", 256, "--eval-split", 0, "--samples", 0)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", output_loading_info=True)
    check(f"{what}: transformers finds every tensor, and no other", not any(info.values()), str(info))
    theirs.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = list(read_rows(tokenizer))
    want = loss_of(theirs, rows)
    got = json.loads(run(tools / "evaluate", "--model", folder, "--data", ROWS))["loss"]
    check(f"{what}: evaluation loss", math.isclose(got, want, rel_tol=2e-6), f"(ours {got:.9g}, theirs {want:.9g})")
    before = json.loads(run(tools / "evaluate", "--model", model, "--data", ROWS))["loss"]
    check(f"{what}: has learnt", got < before, f"(base {before:.6g})")
    answer = json.loads(run(tools / "generate", "--model", folder, "--prompt", PROMPT, "--max-tokens", 12, "--json"))["ids"]
    ids = torch.tensor([tokenizer(PROMPT, add_special_tokens=False)["input_ids"]])
    continued = theirs.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1]:].tolist()
    end = tokenizer.eos_token_id
    continued, answer = ([t for t in some if t != end] for some in (continued, answer))
    check(f"{what}: greedy continuation", answer == continued, f"({answer} and {continued})")


def main(build, *models):
    tools = pathlib.Path(build).resolve() / "tools"
    with tempfile.TemporaryDirectory() as temporary:
        for number, model in enumerate([TINY, *models]):
            check_folder(pathlib.Path(model).name, tools, model, pathlib.Path(temporary) / str(number))
    failed = results.count(False)
    print(f"lorikeet-tests: {len(results) - failed} passed, {failed} failed, 0 skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
