"""Checks what merge and export write with the programs that will read it. Needs torch, transformers, peft, gguf and
llama-cpp-python.

    python check_export.py BUILD [MODEL.gguf]     BUILD: the build folder; MODEL: SmolLM2, by default that of models/

On the tiny model, and on SmolLM2 with an adapter trained for some steps on examples/data/e2e_train.jsonl:
transformers loads the merged folder, and its logits are those of base + adapter under PEFT; the gguf package reads
the merged GGUF files, with the values of the folder; llama.cpp continues prompts from the merged GGUF (F32, F16) and
from the base with our GGUF adapter, with the tokens of our generate program.
Prints a line a check and ends with their number; exits 1 if one failed.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
import transformers
from gguf import GGUFReader
from gguf.quants import dequantize
from llama_cpp import Llama
from peft import PeftModel

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
PROMPTS = [
    "Restaurant facts: name : The Vaults | food : Italian | area : riverside\nSentence:",
    "The capital of France is",
    "def add(a, b):\n",
]
results = []


def check(what, good, detail=""):
    results.append(bool(good))
    print(f"{'ok' if good else 'FAILED'}: {what} {detail}", flush=True)


def run(program, *arguments):
    done = subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(done.args)}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def logits(model, texts):
    with torch.no_grad():
        return torch.cat([model(torch.tensor([ids])).logits[0] for ids in texts])


def from_pairs(name, values, heads):
    """GGUF's llama keeps the two rows of a rotary pair side by side; Hugging Face half a head apart."""
    for key, n in heads.items():
        if key in name:
            return values.reshape(n, -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
    return values


def merged_folder(tools, work, base, adapter, name):
    """transformers on the merged folder against PEFT on the base."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    texts = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in PROMPTS]
    want = logits(PeftModel.from_pretrained(load(base), adapter), texts)
    out = work / "merged"
    report = json.loads(run(tools / "merge", "--model", base, "--adapter", adapter, "--out", out, "--type", "f32"))
    merged = load(out)
    got = logits(merged, texts)
    difference = ((got - want).abs().max() / want.abs().max()).item()
    check(f"{name}: transformers on the merged folder = base + adapter under PEFT", difference < 1e-5,
          f"({difference:.2e} of the largest logit; ours says {report['relative_difference']:.2e})")
    plain = logits(load(base), texts)
    moved = ((got - plain).abs().max() / want.abs().max()).item()
    check(f"{name}: the adapter does something", moved > 100 * difference, f"({moved:.2e})")
    again = transformers.AutoTokenizer.from_pretrained(out)
    check(f"{name}: its tokenizer gives the base's ids",
          [again(p, add_special_tokens=False)["input_ids"] for p in PROMPTS] == texts)
    run(tools / "merge", "--model", base, "--adapter", adapter, "--out", work / "sharded", "--type", "f32",
        "--shard-size", "1MB" if name == "tiny" else "100MB", "--no-verify")
    check(f"{name}: the same from shards", torch.equal(logits(load(work / "sharded"), texts), got))
    return merged


def gguf_files(tools, work, base, adapter, name, merged):
    """The gguf package on the merged GGUF against the merged folder."""
    weights = {k: v.numpy() for k, v in merged.state_dict().items()}
    config = merged.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
             "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
             "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    for kind, bound in ("f32", 0), ("f16", 2**-11), ("bf16", 2**-8), ("q8_0", None), ("q4_0", None), ("q4_1", None):
        path = work / f"merged-{kind}.gguf"
        run(tools / "merge", "--model", base, "--adapter", adapter, "--out", path, "--type", kind, "--no-verify")
        reader = GGUFReader(path)
        worst, count = 0.0, 0
        for t in reader.tensors:
            parts = t.name.removesuffix(".weight").split(".")
            hf = names[parts[-1]] if len(parts) == 1 else f"model.layers.{parts[1]}.{names[parts[2]]}"
            want = weights[hf + ".weight"]
            got = from_pairs(t.name, dequantize(t.data, t.tensor_type).reshape(want.shape), heads)
            relative = np.abs(got - want) / (np.abs(want) + 2**-14) if bound is not None else \
                np.abs(got - want) / np.abs(want).max()
            worst, count = max(worst, relative.max()), count + 1
        limit = bound if bound is not None else {"q8_0": 0.005, "q4_0": 0.13, "q4_1": 0.07}[kind]
        check(f"{name}: gguf reads {kind}", worst <= limit and count == len(reader.tensors) > 10,
              f"({count} tensors, largest difference {worst:.2e}, bound {limit:.2e})")


def llama(path, **more):
    return Llama(str(path), n_ctx=256, n_threads=2, verbose=False, **more)


def greedy(model, prompt, n):
    ids = model.tokenize(prompt.encode(), add_bos=False, special=True)
    out = []
    for token in model.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
        if token == model.token_eos() or len(out) == n:
            break
        out.append(token)
    return out


def ours(tools, model, prompt, n, *more):
    text = run(tools / "generate", "--model", model, "--prompt", prompt, "--max-tokens", n, "--json", "--device", "cpu",
               "--dtype", "f32", *more)
    return json.loads(text)["ids"]


def llama_cpp(tools, work, base, base_gguf, adapter, name, kinds, n=32):
    """llama.cpp on the merged GGUF, and on the base with our GGUF adapter, against our generate program."""
    for kind in kinds:
        path = work / f"llama-{kind}.gguf"
        run(tools / "merge", "--model", base, "--adapter", adapter, "--out", path, "--type", kind, "--no-verify")
        model = llama(path)
        for i, prompt in enumerate(PROMPTS):
            theirs, mine = greedy(model, prompt, n), ours(tools, path, prompt, n)
            check(f"{name}: llama.cpp on merged {kind}, prompt {i}", theirs == mine, f"({len(mine)} tokens)"
                  if theirs == mine else f"({theirs} and {mine})")
    lora = work / "lora.gguf"
    run(tools / "export", "--model", base, "--adapter", adapter, "--out", lora)
    model, plain = llama(base_gguf, lora_path=str(lora)), llama(base_gguf)
    differs = False
    for i, prompt in enumerate(PROMPTS):
        theirs, mine = greedy(model, prompt, n), ours(tools, base, prompt, n, "--adapter", adapter)
        check(f"{name}: llama.cpp on base + our GGUF adapter, prompt {i}", theirs == mine, f"({len(mine)} tokens)"
              if theirs == mine else f"({theirs} and {mine})")
        differs = differs or theirs != greedy(plain, prompt, n)
    check(f"{name}: the GGUF adapter changes the text", differs)


def main(build, smollm2):
    tools = pathlib.Path(build).resolve() / "tools"
    with tempfile.TemporaryDirectory() as scratch:
        work = pathlib.Path(scratch)
        base, adapter = HERE / "peft" / "tiny", HERE / "peft" / "all_linear.after"
        merged = merged_folder(tools, work, base, adapter, "tiny")
        gguf_files(tools, work, base, adapter, "tiny", merged)
    with tempfile.TemporaryDirectory() as scratch:
        work = pathlib.Path(scratch)
        adapter = work / "adapter"
        run(tools / "finetune", "--model", smollm2, "--data", ROOT / "examples/data/e2e_train.jsonl", "--out", adapter,
            "--steps", 15, "--batch", 4, "--seq-len", 256, "--targets", "all-linear", "--rank", 8, "--alpha", 16,
            "--lr", 1e-3, "--device", "cpu", "--dtype", "f32")
        card = (adapter / "README.md").read_text(encoding="utf-8")
        check("SmolLM2: the adapter has a model card", card.startswith("---\nbase_model:") and "training loss" in card)
        # The base as a folder that transformers reads: the adapter with a weight of zero.
        base = work / "base"
        run(tools / "merge", "--model", smollm2, "--adapter", f"{adapter}=0", "--out", base, "--no-verify")
        plain = work / "base.gguf"
        run(tools / "merge", "--model", smollm2, "--adapter", f"{adapter}=0", "--out", plain, "--no-verify")
        config = json.loads((adapter / "adapter_config.json").read_text())
        del config["lorikeet_base_sha256"]  # of the GGUF file: the folder holds the same numbers
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        merged = merged_folder(tools, work, base, adapter, "SmolLM2")
        gguf_files(tools, work, base, adapter, "SmolLM2", merged)
        del merged
        llama_cpp(tools, work, base, plain, adapter, "SmolLM2", ["f32", "f16"])
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    found = sorted((ROOT / "models").glob("SmolLM2-135M-Instruct*.gguf"))
    if len(sys.argv) == 2 and not found:
        sys.exit("give MODEL.gguf: there is none in models/")
    sys.exit(main(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else found[0]))
