"""PEFT loads what we write of prompt tuning, prefix tuning and LLaMA-Adapter, and has our loss with it.

    LORIKEET_KEEP_VIRTUAL_TOKENS=DIR build/tests/test_virtual_methods -tc='what is saved*'
    python tests/golden/check_virtual_tokens.py DIR

DIR gets an adapter for each case of peft/virtual_tokens.json, with our loss over its rows in loss.txt.
"""

import pathlib
import sys

import torch
import transformers
from peft import PeftModel

from make_virtual_token_golden import CASES, OUT, alone, make_rows


def main(folder):
    worst = 0
    for name, case in CASES.items():
        base = transformers.AutoModelForCausalLM.from_pretrained(
            OUT.parent / "models" / case["model"], dtype=torch.float32, attn_implementation="eager")
        model = PeftModel.from_pretrained(base, folder / name).eval()
        ours = float((folder / name / "loss.txt").read_text())
        with torch.no_grad():
            total, count = alone(model, make_rows())
        error = abs((total / count).item() / ours - 1)
        print(f"{name}: {ours:.9f}, PEFT {error:.1e} away")
        worst = max(worst, error)
    print("worst", worst)
    return int(not worst < 2e-6)


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
