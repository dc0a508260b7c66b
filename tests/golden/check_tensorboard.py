#!/usr/bin/env python3
"""TensorBoard reads our event files: check_tensorboard.py FINETUNE. Skipped without the tensorboard package.

Trains the tiny model for four steps, then on to six with --resume, both with --tensorboard, and compares what
TensorBoard's own reader finds in the folder with metrics.jsonl.
"""
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
SCALARS = ["loss", "lr", "grad_norm", "tokens_per_second", "eval_loss"]


def finish(passed, failed, skipped):
    print(f"lorikeet-tests: {passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(failed > 0)


def as_float32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


def main():
    os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        print("no tensorboard package: skipped")
        finish(0, 0, 1)
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "run"
        rows = pathlib.Path(folder) / "rows.jsonl"
        rows.write_text('{"prompt":"abc ","completion":"def"}\n{"prompt":"x","completion":"yz"}\n')
        flags = ["--device", "cpu", "--model", HERE / "peft/tiny", "--data", rows, "--out", out, "--batch", "2",
                 "--seq-len", "64", "--save-every", "1", "--eval-data", rows, "--eval-every", "2", "--samples", "0",
                 "--tensorboard", "--schedule", "constant"]
        for more in (["--steps", "4"], ["--steps", "6", "--resume"]):
            done = subprocess.run([sys.argv[1], *map(str, flags), *more], capture_output=True, text=True)
            if done.returncode != 0:
                print(done.stdout + done.stderr)
                finish(0, 1, 0)
        wanted = {tag: {} for tag in SCALARS}
        for line in (out / "metrics.jsonl").read_text().splitlines():
            row = json.loads(line)
            for tag in SCALARS:
                if tag in row:
                    wanted[tag][row["step"]] = as_float32(row[tag])  # an evaluation told twice: the later one
        reader = EventAccumulator(str(out), size_guidance={"scalars": 0})
        reader.Reload()
        failed = 0
        if sorted(reader.Tags()["scalars"]) != sorted(SCALARS):
            print("tags:", reader.Tags()["scalars"])
            failed += 1
        for tag in SCALARS:
            have = {e.step: e.value for e in reader.Scalars(tag)} if tag in reader.Tags()["scalars"] else {}
            if have != wanted[tag] or not have:
                print(f"{tag}: TensorBoard has {have}, metrics.jsonl {wanted[tag]}")
                failed += 1
        finish(len(SCALARS) + 1 - failed, failed, 0)


if __name__ == "__main__":
    main()
