"""Makes tests/golden/methods/: what other libraries compute with IA3, trained biases and bottleneck adapters.

    python make_method_golden.py peft         ia3_*.json, bias_*.json                (torch, transformers 5, peft 0.21.2)
    python make_method_golden.py adapters     bottleneck_*.json           (torch, transformers 4.57.6, adapters 1.3.0)

Each case trains ten steps on a model of ../models/, in float32 on a CPU, on the rows of ../peft/families.json (ids
and where supervision begins), three a step, with AdamW at a constant rate. The initial parameters come from the
formula of make_peft_golden.py, so that a test can rebuild them bit for bit: element i of parameter n, counted in the
order of the sorted names in the file, is (formula) * scale + centre, where centre is 1 for IA3's vectors and else 0.

<case>.json holds the settings and
  config                the file's own adapter_config.json, as the library saved it
  tensors               name -> shape, as the library saves them
  losses, losses_f64    one per step, and the same computed in float64: how far rounding alone moves them
  after                 name -> the first four elements after ten steps
  ids, logits           a text, and the logits of its last token after ten steps
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
from safetensors.torch import load_file

HERE = pathlib.Path(__file__).parent
OUT = HERE / "methods"
STEPS, BATCH = 10, 3

PEFT_CASES = {
    "ia3_llama": dict(method="IA3", model="tied_gqa", lr=3e-2, scale=0.3),
    "ia3_gpt2": dict(method="IA3", model="gpt2", lr=3e-2, scale=0.3),
    "ia3_qwen2": dict(method="IA3", model="qwen2", lr=3e-2, scale=0.3),
    "ia3_gemma3": dict(method="IA3", model="gemma3", lr=3e-2, scale=0.3),
    "ia3_feedforward": dict(
        method="IA3", model="tied_gqa", lr=3e-2, scale=0.3, targets=["q_proj", "o_proj", "up_proj", "down_proj"],
        feedforward=["o_proj", "up_proj"]),
    "bias_llama": dict(method="BEFT", model="tied_gqa", lr=3e-2, scale=0.1),
    "bias_qwen2": dict(method="BEFT", model="qwen2", lr=3e-2, scale=0.1),
    "bias_all": dict(
        method="BEFT", model="qwen3", lr=1e-2, scale=0.1,
        targets=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
    # the model's own biases; `scale` is not used
    "bias_gpt2": dict(method="own", model="gpt2", lr=1e-2, scale=0),
}
ADAPTER_CASES = {
    "bottleneck_pfeiffer": dict(kind="seq_bn", model="tied_gqa", lr=1e-2, scale=0.2, reduction=4),
    "bottleneck_houlsby": dict(kind="double_seq_bn", model="tied_gqa", lr=1e-2, scale=0.2, reduction=5),
    "bottleneck_parallel": dict(kind="par_bn", model="tied_gqa", lr=1e-2, scale=0.2, reduction=2),
    "bottleneck_gpt2": dict(kind="double_seq_bn", model="gpt2", lr=1e-2, scale=0.2, reduction=4),
    "bottleneck_mistral": dict(
        kind="seq_bn", model="mistral_window", lr=1e-2, scale=0.2, reduction=3, non_linearity="gelu_new",
        leave_out=[0]),
}


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


def fill(named, scale, centre):
    for n, (_, p) in enumerate(sorted(named.items())):
        values = formula_values(n, p.numel()) * np.float32(scale) + np.float32(centre)
        p.data = torch.from_numpy(values).reshape(p.shape).to(p.dtype)


def loss_sum(model, row):
    """Row by row: a padded token whose window holds padding only is NaN in transformers."""
    ids, start = row
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    labels = torch.tensor(ids[1:])
    keep = torch.arange(1, len(ids)) >= max(start, 1)
    return F.cross_entropy(logits[keep], labels[keep], reduction="sum"), int(keep.sum())


def train(model, parameters, lr, rows):
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    losses = []
    for k in range(STEPS):
        parts = [loss_sum(model, rows[(BATCH * k + i) % len(rows)]) for i in range(BATCH)]
        loss = sum(total for total, _ in parts) / sum(n for _, n in parts)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def run(name, case, make, save):
    """make(dtype) -> (model, {file name: trainable parameter}); save(model, folder) -> (config, tensors)."""
    families = json.loads((HERE / "peft" / "families.json").read_text())
    vocab = json.loads((HERE / "models" / case["model"] / "config.json").read_text())["vocab_size"]
    rows = [([i % vocab for i in ids], start) for ids, start in families["rows"]]
    model, named = make(torch.float32)
    losses = train(model, list(named.values()), case["lr"], rows)
    double, named64 = make(torch.float64)
    exact = train(double, list(named64.values()), case["lr"], rows)
    print(name, "float32 against float64:", np.abs(np.array(losses) / np.array(exact) - 1).max(), file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        config, tensors = save(model, pathlib.Path(folder))
    assert set(tensors) == set(named), sorted(set(tensors) ^ set(named))[:4]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([rows[1][0]])).logits[0, -1]
    OUT.mkdir(exist_ok=True)
    result = dict(
        **case, weight_decay=0.01, rows=rows, config=config, losses=losses, losses_f64=exact,
        tensors={k: list(v.shape) for k, v in sorted(tensors.items())},
        after={k: v.flatten()[:4].tolist() for k, v in sorted(tensors.items())},
        ids=rows[1][0], logits=logits.tolist())
    (OUT / f"{name}.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")


# ---- PEFT ----------------------------------------------------------------------------------------

def peft_case(name, case):
    from peft import BeftConfig, IA3Config, get_peft_model

    def base(dtype):
        return transformers.AutoModelForCausalLM.from_pretrained(
            HERE / "models" / case["model"], dtype=dtype, attn_implementation="eager").to(dtype)

    def own_biases(dtype):
        model = base(dtype)
        model.requires_grad_(False)
        named = {n: p for n, p in model.named_parameters() if n.endswith(".bias")}
        for p in named.values():
            p.requires_grad_(True)
        return model, named

    def adapted(dtype):
        common = dict(task_type="CAUSAL_LM", target_modules=case.get("targets"))
        if case["method"] == "IA3":
            config = IA3Config(
                **common, feedforward_modules=case.get("feedforward"), fan_in_fan_out=case["model"] == "gpt2")
        else:
            config = BeftConfig(**common)
        model = get_peft_model(base(dtype), config).to(dtype)
        named = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
        fill(named, case["scale"], 1 if case["method"] == "IA3" else 0)
        return model, named

    def save(model, folder):
        if case["method"] == "own":
            return None, {n: p.data for n, p in model.named_parameters() if p.requires_grad}
        model.save_pretrained(folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        for key in ("target_modules", "feedforward_modules"):
            if isinstance(config.get(key), list):
                config[key] = sorted(config[key])
        config["base_model_name_or_path"] = None
        return config, load_file(folder / "adapter_model.safetensors")

    run(name, case, own_biases if case["method"] == "own" else adapted, save)


# ---- adapters ------------------------------------------------------------------------------------

def adapter_base(name, dtype):
    """A model of ../models/. adapters knows the rotary base by the key that transformers 4 gave it."""
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(HERE / "models" / name, copy, dirs_exist_ok=True)
        path = pathlib.Path(copy) / "config.json"
        config = json.loads(path.read_text())
        rope = config.pop("rope_parameters", None)
        if rope:
            assert rope["rope_type"] == "default", rope
            config["rope_theta"] = rope["rope_theta"]
        path.write_text(json.dumps(config))
        return transformers.AutoModelForCausalLM.from_pretrained(
            copy, dtype=dtype, attn_implementation="eager").to(dtype).eval()


def adapter_case(name, case):
    import adapters

    def adapted(dtype):
        model = adapter_base(case["model"], dtype)
        adapters.init(model)
        options = {k: case[k] for k in ("non_linearity", "leave_out") if k in case}
        config = adapters.AdapterConfig.load(case["kind"], reduction_factor=case["reduction"], **options)
        model.add_adapter("lorikeet", config=config)
        model.train_adapter("lorikeet")
        model.set_active_adapters("lorikeet")
        model.eval().to(dtype)
        for n, p in model.named_parameters():
            p.requires_grad_(".lorikeet." in n)
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        fill(named, case["scale"], 0)
        return model, named

    def save(model, folder):
        model.save_adapter(str(folder), "lorikeet", use_safetensors=True, with_head=False)
        config = json.loads((folder / "adapter_config.json").read_text())
        config["model_name"] = None  # a temporary folder
        return config, load_file(folder / "adapter.safetensors")

    run(name, case, adapted, save)


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    what, *only = sys.argv[1:] or ["help"]
    cases, make = {"peft": (PEFT_CASES, peft_case), "adapters": (ADAPTER_CASES, adapter_case)}.get(what, (None, None))
    if cases is None:
        sys.exit(__doc__)
    for name, case in cases.items():
        if not only or name in only:
            make(name, case)
