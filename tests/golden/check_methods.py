"""Checks what our programs write for other methods than LoRA against the libraries that define the files.

    python check_methods.py peft BUILD         (IA)3 and trained biases   (torch, transformers 5, peft 0.21.2)
    python check_methods.py adapters BUILD     bottleneck adapters        (torch, transformers 4.57.6, adapters 1.3.0)

finetune trains each method for a few steps on the tiny model of ../golden/peft; the library loads the folder, uses every
tensor, and then has the same evaluation loss as our evaluate program and continues a prompt with the same tokens as our
generate program. Prints a line a check and ends with their number; exits 1 if one failed.
"""

import json
import math
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file

HERE = pathlib.Path(__file__).parent
TINY, ROWS = HERE / "peft" / "tiny", HERE / "peft" / "rows.jsonl"
PROMPT = "name : The Eagle"
METHODS = {
    "peft": [["ia3"], ["ia3", "--targets", "all-linear"], ["bitfit"], ["bitfit", "--targets", "all-linear"]],
    "adapters": [["bottleneck", "--bottleneck", "8"], ["bottleneck", "--bottleneck", "9", "--bottleneck-kind", "houlsby"],
                 ["bottleneck", "--bottleneck", "24", "--bottleneck-kind", "parallel"]],
}
results = []


def check(what, good, detail=""):
    results.append(good)
    print(f"{'ok' if good else 'FAILED'}: {what} {detail}", flush=True)


def run(program, *arguments):
    command = [str(program), *map(str, arguments), "--device", "cpu", "--dtype", "f32"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def read_rows(tokenizer):
    for line in ROWS.read_text().splitlines():
        row = json.loads(line)
        encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
        yield encode(row["prompt"] + row["completion"]) + [tokenizer.eos_token_id], len(encode(row["prompt"]))


def loss_of(model, rows):
    total = count = 0
    with torch.no_grad():
        for ids, start in rows:
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
            begin = max(start, 1)
            total += torch.nn.functional.cross_entropy(logits[begin - 1 :], torch.tensor(ids[begin:]), reduction="sum").item()
            count += len(ids) - begin
    return total / count


def with_peft(base, folder):
    from peft import PeftModel, get_peft_model_state_dict

    model = PeftModel.from_pretrained(base, folder)
    return model, get_peft_model_state_dict(model), load_file(folder / "adapter_model.safetensors")


def with_adapters(base, folder):
    import adapters

    adapters.init(base)
    name = base.load_adapter(str(folder), use_safetensors=True)
    base.set_active_adapters(name)
    return base, base.state_dict(), load_file(folder / "adapter.safetensors")


def main(library, build):
    tools = pathlib.Path(build).resolve() / "tools"
    # by its file: transformers 4 does not know the class that transformers 5 names
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(TINY / "tokenizer.json"), bos_token="<|im_start|>", eos_token="<|im_end|>")
    rows = list(read_rows(tokenizer))
    with tempfile.TemporaryDirectory() as temporary:
        temporary = pathlib.Path(temporary)
        # transformers 4 knows the rotary base by another key
        base_folder = temporary / "base"
        shutil.copytree(TINY, base_folder)
        config = json.loads((base_folder / "config.json").read_text())
        if library == "adapters" and "rope_parameters" in config:
            config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
            (base_folder / "config.json").write_text(json.dumps(config))
        for number, arguments in enumerate(METHODS[library]):
            what, folder = " ".join(arguments), temporary / str(number)
            run(tools / "finetune", "--model", TINY, "--data", ROWS, "--out", folder, "--method", *arguments, "--steps", 6,
                "--batch", 4, "--lr", 0.02, "--seq-len", 256, "--eval-split", 0, "--samples", 0)
            base = transformers.AutoModelForCausalLM.from_pretrained(
                base_folder, dtype=torch.float32, attn_implementation="eager").eval()
            before = loss_of(base, rows)
            model, loaded, ours = (with_peft if library == "peft" else with_adapters)(base, folder)
            model.eval()
            check(f"{what}: the library uses every tensor",
                  all(name in loaded and torch.equal(loaded[name], value) for name, value in ours.items()), f"({len(ours)})")
            theirs = loss_of(model, rows)
            mine = json.loads(run(tools / "evaluate", "--model", TINY, "--adapter", folder, "--data", ROWS))["loss"]
            check(f"{what}: evaluation loss", math.isclose(mine, theirs, rel_tol=2e-6), f"(ours {mine:.9g}, theirs {theirs:.9g})")
            check(f"{what}: differs from the base", abs(theirs - before) > 1e-3, f"(base {before:.6g})")
            answer = json.loads(run(tools / "generate", "--model", TINY, "--adapter", folder, "--prompt", PROMPT,
                                    "--max-tokens", 12, "--json"))
            ids = torch.tensor([tokenizer(PROMPT, add_special_tokens=False)["input_ids"]])
            # The library's whole sequence each time: generate() of adapters, with its cache, chooses other tokens.
            want = []
            with torch.no_grad():
                while len(want) < 12 and tokenizer.eos_token_id not in want:
                    logits = model(input_ids=torch.cat([ids, torch.tensor([want], dtype=torch.long)], 1)).logits
                    want.append(int(logits[0, -1].argmax()))
            want, got = ([t for t in some if t != tokenizer.eos_token_id] for some in (want, answer["ids"]))
            check(f"{what}: greedy continuation", got == want, f"({got} and {want})")
    failed = results.count(False)
    print(f"lorikeet-tests: {len(results) - failed} passed, {failed} failed, 0 skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in METHODS:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
