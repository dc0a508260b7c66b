"""Checks what merge and export write with the programs that will read it. Needs torch, transformers, peft, gguf and
llama-cpp-python.

    python check_export.py BUILD [MODEL.gguf]     BUILD: the build folder; MODEL: SmolLM2, by default that of models/

On the tiny model, on a tiny model of every family (those of models/, with a tokenizer of 300 tokens) and on SmolLM2,
the latter two with an adapter trained for some steps: transformers loads the merged folder, and its logits are those
of base + adapter under PEFT; the gguf package reads the merged GGUF files, with the values of the folder; llama.cpp
continues prompts from the merged GGUF (F32, F16) and from the base with our GGUF adapter, with the tokens of our
generate program. Of a family also: the merged GGUF made a folder again, in transformers.
Prints a line a check and ends with their number; exits 1 if one failed.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import gguf
import numpy as np
import torch
import transformers
from gguf import GGUFReader
from gguf.quants import dequantize
from llama_cpp import Llama
from peft import PeftModel
from safetensors.torch import load_file, save_file

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


def merged_folder(tools, work, base, adapter, name, shard):
    """transformers on the merged folder against PEFT on the base; then on the same from shards."""
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
        "--shard-size", shard, "--no-verify")
    check(f"{name}: the same from shards", torch.equal(logits(load(work / "sharded"), texts), got))
    return merged


def tensor_names(config):
    """GGUF's names of the model's tensors, as the gguf package has them, and Hugging Face's."""
    arch = {"llama": gguf.MODEL_ARCH.LLAMA, "mistral": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2,
            "qwen3": gguf.MODEL_ARCH.QWEN3, "gemma3_text": gguf.MODEL_ARCH.GEMMA3, "gpt2": gguf.MODEL_ARCH.GPT2}
    table = gguf.get_tensor_name_map(arch[config.model_type], config.num_hidden_layers)
    return lambda hf: table.get_name(hf, try_suffixes=(".weight", ".bias"))


def as_gguf_has_it(config, name, values):
    """A tensor of a folder in GGUF's order: rotary pairs side by side, matrices (out, in), gains whole."""
    kind = config.model_type
    if kind in ("llama", "mistral") and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    if kind == "gpt2" and ".c_" in name and values.ndim == 2:
        return values.T
    if kind == "gemma3_text" and "norm" in name:
        return values + np.float32(1)
    return values


def gguf_files(tools, work, base, adapter, name, merged):
    """The gguf package on the merged GGUF against the merged folder."""
    config, gguf_name = merged.config, tensor_names(merged.config)
    weights = {gguf_name(k): as_gguf_has_it(config, k, v.numpy()) for k, v in merged.state_dict().items()
               if not (k == "lm_head.weight" and config.tie_word_embeddings)}
    for kind, bound in ("f32", 0), ("f16", 2**-11), ("bf16", 2**-8), ("q8_0", None), ("q4_0", None), ("q4_1", None):
        path = work / f"merged-{kind}.gguf"
        run(tools / "merge", "--model", base, "--adapter", adapter, "--out", path, "--type", kind, "--no-verify")
        reader = GGUFReader(path)
        worst = 0.0
        for t in reader.tensors:
            want = weights[t.name]
            got = dequantize(t.data, t.tensor_type).reshape(want.shape)
            relative = np.abs(got - want) / (np.abs(want) + 2**-14) if bound is not None else \
                np.abs(got - want) / np.abs(want).max()
            worst = max(worst, relative.max())
        limit = bound if bound is not None else {"q8_0": 0.005, "q4_0": 0.13, "q4_1": 0.07}[kind]
        check(f"{name}: gguf reads {kind}", worst <= limit and {t.name for t in reader.tensors} == set(weights),
              f"({len(weights)} tensors, largest difference {worst:.2e}, bound {limit:.2e})")


def folder_from_gguf(tools, work, base, adapter, name, merged):
    """The merged GGUF as a folder again."""
    path, out = work / "there.gguf", work / "back"
    run(tools / "merge", "--model", base, "--adapter", adapter, "--out", path, "--type", "f32", "--no-verify")
    run(tools / "merge", "--model", path, "--adapter", f"{adapter}=0", "--out", out, "--other-base", "--no-verify")
    ids = [[(7 * i + k) % 67 for i in range(90)] for k in range(2)]
    want, got = logits(merged, ids), logits(load(out), ids)
    difference = ((got - want).abs().max() / want.abs().max()).item()
    check(f"{name}: transformers on the folder that our GGUF becomes", difference < 1e-6, f"({difference:.2e})")


def llama(path, **more):
    return Llama(str(path), n_ctx=256, n_threads=2, verbose=False, type_k=0, type_v=0, **more)  # a cache in F32


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


# What GGUF has no words for is refused; tests/test_merge_families.cpp.
FAMILIES = {
    "biases": True, "mistral_linear": True, "mistral_window": False, "qwen2": True,
    "qwen2_window": False, "qwen3": True, "qwen3_odd": False, "gemma3": True, "gemma3_odd": False, "gpt2": True, "gpt2_odd": True,
}
TOKENS = 300


def runnable(name, folder, **changes):
    """A model of models/ with the tokenizer of peft/tiny, whose tokens need more rows."""
    source = HERE / "models" / name
    folder.mkdir()
    for file in "tokenizer.json", "tokenizer_config.json", "generation_config.json":
        shutil.copy(HERE / "peft" / "tiny" / file, folder / file)
    config = json.loads((source / "config.json").read_text())
    config.update(vocab_size=TOKENS, dtype="float32", **changes)
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for shard in sorted(source.glob("*.safetensors")):
        for key, value in load_file(shard).items():
            value = value.float()
            if key.endswith(("embed_tokens.weight", "wte.weight", "lm_head.weight")):
                more = torch.randn(TOKENS - len(value), value.shape[1], generator=generator) / value.shape[1] ** 0.5
                value = torch.cat([value, more])
            tensors[key] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def trained(tools, base, work):
    rows = work / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": p, "completion": f" number {i}"}) + "\n"
                            for i, p in enumerate(PROMPTS)))
    adapter = work / "adapter"
    run(tools / "finetune", "--model", base, "--data", rows, "--out", adapter, "--steps", 5, "--batch", 3,
        "--seq-len", 160, "--targets", "all-linear", "--rank", 3, "--alpha", 6, "--lr", 1e-2, "--device", "cpu",
        "--dtype", "f32")
    return adapter


def family(tools, name, in_gguf, label=None, **changes):
    label = label or name
    with tempfile.TemporaryDirectory() as scratch:
        work = pathlib.Path(scratch)
        base = runnable(name, work / "base", **changes)
        adapter = trained(tools, base, work)
        merged = merged_folder(tools, work, base, adapter, label, "12000")
        if not in_gguf:
            return
        gguf_files(tools, work, base, adapter, label, merged)
        folder_from_gguf(tools, work, base, adapter, label, merged)
        plain = work / "base.gguf"
        run(tools / "merge", "--model", base, "--adapter", f"{adapter}=0", "--out", plain, "--type", "f32")
        llama_cpp(tools, work, base, plain, adapter, label, ["f32"])


def families(tools):
    for name, in_gguf in FAMILIES.items():
        family(tools, name, in_gguf)
    # The keys of Gemma that few files have.
    family(tools, "gemma3_odd", True, "gemma3_odd, local layers first", query_pre_attn_scalar=10,
           layer_types=["sliding_attention", "full_attention"])


def main(build, smollm2):
    tools = pathlib.Path(build).resolve() / "tools"
    families(tools)
    with tempfile.TemporaryDirectory() as scratch:
        work = pathlib.Path(scratch)
        base, adapter = HERE / "peft" / "tiny", HERE / "peft" / "all_linear.after"
        merged = merged_folder(tools, work, base, adapter, "tiny", "1MB")
        gguf_files(tools, work, base, adapter, "tiny", merged)
    with tempfile.TemporaryDirectory() as scratch:
        work = pathlib.Path(scratch)
        adapter = work / "adapter"
        run(tools / "finetune", "--model", smollm2, "--data", ROOT / "examples/data/e2e_train.jsonl", "--out", adapter,
            "--steps", 15, "--batch", 4, "--seq-len", 256, "--targets", "all-linear", "--rank", 8, "--alpha", 16,
            "--lr", 1e-3, "--device", "cpu", "--dtype", "f32")
        card = (adapter / "README.md").read_text(encoding="utf-8")
        check("SmolLM2: the adapter has a model card", card.startswith("---\nbase_model:") and "training loss" in card)
        # The base as a folder that transformers reads, which the adapter takes for its own.
        base = work / "base"
        run(tools / "merge", "--model", smollm2, "--out", base, "--no-verify")
        plain = work / "base.gguf"
        run(tools / "merge", "--model", smollm2, "--out", plain, "--no-verify")
        merged = merged_folder(tools, work, base, adapter, "SmolLM2", "100MB")
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
