"""Makes tests/golden/methods/combined_*.json: LoRA trained together with another method, as other libraries compute it.

    python make_combined_golden.py peft         combined_prefix.json             (torch, transformers 5.24, peft 0.21.2)
    python make_combined_golden.py adapters     combined_bottleneck.json         (torch, transformers 4.57.6, adapters 1.3.0)

PEFT injects LoRA into the model and then puts prefix tuning on top; adapters unites its LoRA and its bottlenecks in one
configuration. Model, rows, steps and optimizer are those of make_method_golden.py.

Initial values come from the formula of make_peft_golden.py. The parameters are numbered through: first LoRA's, in the order
of their sorted names in PEFT's file without `base_model.model.`, bounded by 1 / sqrt(in) for A and by b_bound for B; then
those of the other method in the order of their sorted names, bounded by `scale`.

<case>.json holds the settings and
  losses, losses_f64    one per step, and the same computed in float64: how far rounding alone moves them
  after                 name -> all elements after ten steps
  after_f64_differs     the largest difference of an element from the run in float64
  ids                   a text, and of its last token after ten steps
  logits                with both methods
  logits_lora           with LoRA alone
  logits_other          with the other method alone
"""

import json
import sys

import numpy as np
import torch
import transformers

from make_method_golden import HERE, OUT, adapter_base, formula_values, train

LORA = dict(rank=2, alpha=6, targets=["q_proj", "k_proj", "v_proj", "down_proj"], b_bound=0.2)
PREFIX = dict(other="prefix", model="tied_gqa", lr=1e-2, **LORA, n=4, scale=1.0)
BOTTLENECK = dict(other="bottleneck", model="tied_gqa", lr=1e-2, **LORA, kind="double_seq_bn", reduction=8, scale=0.2)


def fill(lora, other, case):
    for n, (name, p) in enumerate(sorted(lora.items()) + sorted(other.items())):
        bound = case["scale"] if name in other else 1 / np.sqrt(p.shape[1]) if ".lora_A." in name else case["b_bound"]
        values = formula_values(n, p.numel()) * np.float32(bound)
        p.data = torch.from_numpy(values).reshape(p.shape).to(p.dtype)
        p.requires_grad_(True)


def prefix_and_lora(dtype):
    """LoRA's parameters, the prefix's, and three ways to run the model: with both, with one alone."""
    from peft import LoraConfig, PrefixTuningConfig, get_peft_model, inject_adapter_in_model

    base = transformers.AutoModelForCausalLM.from_pretrained(
        HERE / "models" / PREFIX["model"], dtype=dtype, attn_implementation="eager").eval()
    config = LoraConfig(r=PREFIX["rank"], lora_alpha=PREFIX["alpha"], target_modules=PREFIX["targets"], lora_dropout=0.0)
    base = inject_adapter_in_model(config, base)
    model = get_peft_model(base, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PREFIX["n"])).to(dtype).eval()
    lora = {n.removeprefix("base_model.").replace(".default.", "."): p for n, p in model.named_parameters() if ".lora_" in n}
    other = {n.replace(".default.", "."): p for n, p in model.named_parameters() if n.startswith("prompt_encoder.")}
    fill(lora, other, PREFIX)

    def prefixed(input_ids):
        return model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))

    def prefix_only(input_ids):
        layers = [m for m in model.modules() if hasattr(m, "lora_A")]
        for m in layers:
            m.enable_adapters(False)
        result = prefixed(input_ids)
        for m in layers:
            m.enable_adapters(True)
        return result

    return lora, other, dict(logits=prefixed, logits_lora=lambda input_ids: base(input_ids=input_ids), logits_other=prefix_only)


def bottleneck_and_lora(dtype):
    import adapters

    model = adapter_base(BOTTLENECK["model"], dtype)
    adapters.init(model)
    # adapters calls down_proj "intermediate"
    both = adapters.ConfigUnion(
        adapters.LoRAConfig(r=BOTTLENECK["rank"], alpha=BOTTLENECK["alpha"], attn_matrices=["q", "k", "v"],
                            intermediate_lora=True, dropout=0.0),
        adapters.AdapterConfig.load(BOTTLENECK["kind"], reduction_factor=BOTTLENECK["reduction"]))
    model.add_adapter("lorikeet", config=both)
    model.train_adapter("lorikeet")
    model.set_active_adapters("lorikeet")
    model.eval().to(dtype)
    own = {n: p for n, p in model.named_parameters() if ".lorikeet." in n}
    for p in model.parameters():
        p.requires_grad_(False)
    lora = {n.replace(".loras.lorikeet", "") + ".weight": p for n, p in own.items() if ".loras." in n}
    other = {n: p for n, p in own.items() if ".loras." not in n}
    fill(lora, other, BOTTLENECK)

    def without(parameters):
        """Without what adds `parameters`: both methods add a product, whose last matrix and bias are made zero."""
        def run(input_ids):
            ends = [p for n, p in parameters.items() if ".lora_B." in n or ".adapter_up." in n]
            kept = [p.data for p in ends]
            for p in ends:
                p.data = torch.zeros_like(p)
            result = model(input_ids=input_ids)
            for p, values in zip(ends, kept):
                p.data = values
            return result
        return run

    return lora, other, dict(logits=lambda input_ids: model(input_ids=input_ids), logits_lora=without(other),
                             logits_other=without(lora))


def numbers(tensor):
    """The shortest decimals that are these float32 numbers."""
    return [float(str(x)) for x in tensor.detach().flatten().numpy().astype(np.float32)]


def run(name, case, make):
    families = json.loads((HERE / "peft" / "families.json").read_text())
    rows = [(ids, start) for ids, start in families["rows"]]
    lora, other, ways = make(torch.float32)
    named = {**lora, **other}
    losses = train(ways["logits"], list(named.values()), case["lr"], rows)
    lora64, other64, ways64 = make(torch.float64)
    named64 = {**lora64, **other64}
    exact = train(ways64["logits"], list(named64.values()), case["lr"], rows)
    differs = max((p.double() - named64[n]).abs().max().item() for n, p in named.items())
    print(name, "float32 against float64: losses", np.abs(np.array(losses) / np.array(exact) - 1).max(),
          "parameters", differs, file=sys.stderr)
    with torch.no_grad():
        logits = {key: numbers(way(torch.tensor([rows[1][0]])).logits[0, -1]) for key, way in ways.items()}
    result = dict(
        **case, weight_decay=0.01, rows=rows, losses=losses, losses_f64=exact,
        after={n: numbers(p) for n, p in sorted(named.items())}, after_f64_differs=differs, ids=rows[1][0], **logits)
    (OUT / f"{name}.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    if sys.argv[1:] == ["peft"]:
        run("combined_prefix", PREFIX, prefix_and_lora)
    elif sys.argv[1:] == ["adapters"]:
        run("combined_bottleneck", BOTTLENECK, bottleneck_and_lora)
    else:
        sys.exit(__doc__)
