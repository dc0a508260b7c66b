#!/usr/bin/env python3
"""Kills a tiny run with SIGKILL at random times, goes on with --resume, and compares it with a run that was left alone.

    tests/kill_runs.py build/tools/finetune --kills 100 [--seed 1] [--processes 3]

After each kill --resume must end with 0 or be killed in turn; in the end the adapter must have the bytes of the
uninterrupted run's, metrics.jsonl each step once, and no temporary file may be left. With --processes each part of a run has up to
that many processes, of which one is killed, or the program that started them: all must then end, the program with 4.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
TIME_TO_END = 20  # seconds that the others have when one of a run's processes is killed


def children(pid):
    """The numbers of a process's children; none if it has ended."""
    try:
        return [int(n) for task in pathlib.Path(f"/proc/{pid}/task").iterdir() for n in (task / "children").read_text().split()]
    except OSError:
        return []


def runs(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def kill_one(process, rng):
    """Kills the process or one of its children. Returns its exit status or what is wrong, and the processes that are left."""
    ranks = children(process.pid)
    victim = rng.choice([process.pid, *ranks, *ranks])
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        pass
    try:
        _, errors = process.communicate(timeout=TIME_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        return "does not end", process.communicate()[1], ranks
    deadline = time.monotonic() + TIME_TO_END
    while any(map(runs, ranks)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return process.returncode, errors, [r for r in ranks if runs(r)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("finetune")
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    steps = 12
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        rows = folder / "rows.jsonl"
        rows.write_text('{"prompt":"abc ","completion":"def"}\n{"prompt":"x","completion":"yz"}\n')

        def command(out, *more):
            count = args.processes if out.name == "whole" else rng.randint(2, max(args.processes, 2))
            if args.processes:
                more += ("--processes", str(count), "--grad-accum", "3")
            return [args.finetune, "--device", "cpu", "--model", str(HERE / "golden/peft/tiny"), "--data", str(rows), "--out", str(out),
                    "--batch", "2", "--seq-len", "64", "--lr", "1e-2", "--steps", str(steps), "--save-every", "1",
                    "--eval-data", str(rows), "--eval-every", "3", "--samples", "0", *more]

        def fail(what, text=""):
            sys.exit(f"kill_runs: {what}\n{text}")

        begun = time.monotonic()
        whole = subprocess.run(command(folder / "whole"), capture_output=True, text=True)
        if whole.returncode != 0:
            fail("the run that nobody kills fails", whole.stderr)
        seconds = time.monotonic() - begun
        want = (folder / "whole/adapter_model.safetensors").read_bytes()
        kills = runs = 0
        while kills < args.kills:
            out = folder / f"run{runs}"
            runs += 1
            while True:
                resume = ["--resume"] if out.exists() else []
                process = subprocess.Popen(command(out, *resume), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                try:
                    _, errors = process.communicate(timeout=rng.uniform(0, 1.2 * seconds) if kills < args.kills else None)
                except subprocess.TimeoutExpired:
                    status, errors, left = kill_one(process, rng)
                    kills += 1
                    if status not in (-signal.SIGKILL, 4, 0, 2) or left:
                        fail(f"kill {kills}: exit {status}, left processes {left}", errors)
                    if status == 2 and "holds a finished run" not in errors:
                        fail(f"kill {kills}: exit 2", errors)
                    continue
                finished = process.returncode == 2 and "holds a finished run" in errors  # killed after its last file
                if process.returncode != 0 and not finished:
                    fail(f"kill {kills}: exit {process.returncode}", errors)
                break
            if (out / "adapter_model.safetensors").read_bytes() != want:
                fail(f"kill {kills}: another adapter")
            lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            done = [line["step"] for line in lines if "loss" in line]
            evaluated = [line["step"] for line in lines if "eval_loss" in line]
            if done != list(range(1, steps + 1)) or evaluated != [0, 3, 6, 9, 12]:
                fail(f"kill {kills}: steps {done}, evaluations {evaluated}")
            left = [p.name for p in out.iterdir() if p.name.endswith(".tmp") or p.name == ".lock"]
            if left and not finished:
                fail(f"kill {kills}: left {left}")
    print(f"{kills} kills, {runs} runs: same adapters, whole records, nothing left")
    print("lorikeet-tests: 1 passed, 0 failed, 0 skipped")


if __name__ == "__main__":
    main()
