#!/usr/bin/env python3
"""One run on the GPUs of a machine: does it scale, are the bytes the same, does a large base fit, does a death end well.

    python3 bench/scaling.py --python path/to/python --seconds 560      PYTHON with torch and peft: also times PyTorch's DDP
    python3 bench/scaling.py --device cpu --processes 8                 the same on a CPU, with tiny models

  weak    tokens/s of one step at 1, 2, 4, 8 processes with as much work for each, and what the reduction takes of it
  ddp     PyTorch's DistributedDataParallel of the compiled PEFT model, on all GPUs and on one
  bytes   six steps with accumulation and dropout leave the same adapter at every number of processes
  memory  llama3-70b at 1 x 4096 a card with recomputation, in NF4 on each card and in bfloat16 in parts on all: a process's peak
          against its plan
  kill    SIGKILL of one process: all end with exit code 4, and another number of processes goes on to the same bytes

Standard library only. Every result is a JSON line of --results; the table of this run comes last. Exits 1 if bytes differ, a
process stays or a plan is off; being slow is no failure.
"""

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import matrix_cases

HERE = pathlib.Path(__file__).resolve().parent
TIME_TO_END = 30  # seconds for a run's other processes once one was killed
TINY = matrix_cases.SHAPES["smollm2-135m"] | dict(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128, vocab_size=512,
    max_position_embeddings=2048, rope_theta=1e4, tie_word_embeddings=False)
LLAMA3_70B_BYTES = 128 << 30  # of its layers' matrices, in bfloat16
SPACE_BESIDE = 17 << 30  # its embedding and head, two slots and what a step keeps at 1 x 4096 with recomputation
# model: rows, tokens a row, and the least speed at 2, 4 and 8 times as many cards
WEAK = {
    "llama2-7b": (4, 2048, {2: 1.95, 4: 3.9, 8: 7.8}),
    "llama3.2-1b": (8, 1024, {2: 1.9, 4: 3.8, 8: 7.5}),
    "smollm2-135m": (16, 512, {2: 1.8, 4: 3.5, 8: 6.8}),
}
PARTS = ("bytes", "kill", "weak", "ddp", "memory")


class OutOfTime(Exception):
    pass


class Scaling:
    def __init__(self, args, folder, results):
        self.args, self.folder, self.results = args, pathlib.Path(folder), results
        self.begin = time.monotonic()
        self.counts = [n for n in (1, 2, 4, 8) if n <= args.processes]
        self.lines = []

    # -- processes

    def left(self):
        return self.args.seconds - (time.monotonic() - self.begin)

    def run(self, command, **more):
        """A program's output. Throws OutOfTime where the run's time is over first, ChildProcessError where it fails."""
        if self.left() <= 0:
            raise OutOfTime
        process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   start_new_session=True, **more)
        try:
            out, errors = process.communicate(timeout=self.left())
        except subprocess.TimeoutExpired:
            raise OutOfTime from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its own session: with all that it started
                process.communicate()
        if process.returncode != 0:
            last = [line for line in errors.splitlines() if line.strip()][-1:]
            raise ChildProcessError(f"{pathlib.Path(str(command[0])).name}: exit {process.returncode}: {''.join(last)[:300]}")
        return out

    def note(self, part, what, ok, **numbers):
        """A result: `ok` is None where nothing can be wrong with it."""
        line = dict(part=part, what=what, ok=ok, card=self.args.card, date=datetime.date.today().isoformat(), **numbers)
        self.lines.append(line)
        self.results.write(json.dumps(line) + "\n")
        self.results.flush()
        print(f"{part}: {what}: {numbers}", file=sys.stderr, flush=True)

    def config_file(self, name, config):
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(config))
        return path

    # -- speed

    def weak_cases(self):
        if self.args.device == "cpu":
            return {"tiny": (TINY, 2, 32, {})}
        return {name: (matrix_cases.MODELS[name], *rest) for name, rest in WEAK.items()}

    def step(self, config, batch, seq_len, count, *more, steps=14):
        device = [] if count > 1 else ["--device", "cuda:0"]
        flags = ["--config", config, "--batch", batch, "--seq-len", seq_len, "--rank", 16, "--dtype", self.args.dtype, "--steps",
                 steps, "--warmup", 4, *(["--device", "cpu"] if self.args.device == "cpu" else device)]
        return json.loads(self.run([self.args.build / "bench/bench_step", *flags, "--processes", count, *more]))

    def weak(self):
        for name, (config, batch, seq_len, bars) in self.weak_cases().items():
            path = self.config_file(name, config)
            one = None
            for count in self.counts:
                r = self.step(path, batch, seq_len, count)
                one = one or r["tokens_per_second"]
                own = r.get("process_microseconds") or [0]
                ratio, bar = r["tokens_per_second"] / one, bars.get(count)
                self.note("weak", f"{name} {batch} x {seq_len} a card, {count} processes", None,
                          tokens_per_second=round(r["tokens_per_second"]), of_one=round(ratio, 3), bar=bar,
                          reached=ratio >= bar if bar else None,
                          reduction=round(r["reduction_seconds"] / r["reduced_step_seconds"], 4) if count > 1 else None,
                          slowest_over_fastest=round(max(own) / max(min(own), 1), 3) if count > 1 else None,
                          peak_bytes=r["device_peak_bytes"])

    def ddp(self):
        if not self.args.python:
            return self.note("ddp", "left out: no --python", None)
        name, (config, batch, seq_len, _) = next(iter(self.weak_cases().items()))
        flags = ["--config", self.config_file(name, config), "--batch", batch, "--seq-len", seq_len, "--rank", 16, "--dtype",
                 self.args.dtype, "--device", self.args.device, "--steps", 8, "--warmup", 3, "--modes",
                 "eager" if self.args.device == "cpu" else "compile-layer"]
        count = self.counts[-1]
        out = self.run([self.args.python, "-m", "torch.distributed.run", "--nproc-per-node", count,
                        HERE / "peers/ddp_step.py", *flags])
        lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        for r in lines:
            self.note("ddp", f"{name} {batch} x {seq_len} a card, {r['processes']} processes", None,
                      tokens_per_second=round(r["tokens_per_second"]),
                      of_one=round(r["tokens_per_second"] / lines[0]["tokens_per_second"], 3))

    # -- bytes

    def rows(self):
        path = self.folder / "rows.jsonl"
        path.write_text("".join(json.dumps({"prompt": f"{i} and ", "completion": "abc " * (1 + i % 7)}) + "\n" for i in range(64)))
        return path

    def finetune(self, out, count, *more):
        device = ["--device", "cpu"] if self.args.device == "cpu" else []
        return [self.args.build / "tools/finetune", "--model", self.args.model, "--data", self.rows(), "--out", out, "--processes", count,
                "--steps", 6, "--grad-accum", self.counts[-1], "--batch", 2, "--seq-len", 64, "--rank", 4, "--dropout", 0.1,
                "--lr", "1e-2", "--samples", 0, "--save-every", 1, *device, *more]

    def adapter(self, out):
        return hashlib.sha256((out / "adapter_model.safetensors").read_bytes()).hexdigest()

    def whole(self, count):
        """The hash of what a run of so many processes leaves."""
        out = self.folder / f"whole{count}"
        if not out.exists():
            self.run(self.finetune(out, count))
        return self.adapter(out)

    def bytes(self):
        hashes = {count: self.whole(count) for count in self.counts}
        self.note("bytes", f"{', '.join(map(str, self.counts))} processes, 6 steps of {self.counts[-1]} micro-batches, dropout",
                  len(set(hashes.values())) == 1, sha256=sorted(set(hashes.values())))

    def kill(self):
        if self.counts[-1] < 2:
            return self.note("kill", "left out: one process", None)
        out, count = self.folder / "killed", self.counts[-1]
        want = self.whole(count)
        for _ in range(5):  # a run may end before it is killed
            subprocess.run(["rm", "-rf", str(out)], check=True)
            command = [str(c) for c in self.finetune(out, count)]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
            try:
                while process.poll() is None and not (out / "checkpoint.safetensors").exists() and self.left() > 0:
                    time.sleep(0.002)
                ranks = children(process.pid)
                if process.poll() is not None or len(ranks) < count:
                    continue
                begun = time.monotonic()
                os.kill(ranks[-1], signal.SIGKILL)
                code = process.wait(timeout=min(TIME_TO_END, max(self.left(), 1)))
                seconds = time.monotonic() - begun
                while any(map(alive, ranks)) and time.monotonic() < begun + TIME_TO_END:
                    time.sleep(0.05)
            except subprocess.TimeoutExpired:
                return self.note("kill", f"one of {count} processes", False, why=f"does not end in {TIME_TO_END} s")
            except ProcessLookupError:
                continue
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            left = [r for r in ranks if alive(r)]
            if code == 0:
                continue
            other = self.counts[-2]
            self.run(self.finetune(out, other, "--resume"))
            same = self.adapter(out) == want
            return self.note("kill", f"one of {count} processes; {other} go on", code == 4 and not left and same,
                             exit_code=code, seconds=round(seconds, 2), left=len(left), same_bytes=same)
        self.note("kill", "left out: every run was over before it could be killed", None)

    # -- memory

    def memory(self):
        if self.args.device == "cpu":
            return self.note("memory", "left out: llama3-70b needs GPUs", None)
        if self.args.card_bytes < 64 << 30:
            return self.note("memory", "left out: llama3-70b in NF4 needs cards of 64 GiB", None)
        config, most = self.config_file("llama3-70b", matrix_cases.SHAPES["llama3-70b"]), self.counts[-1]
        cases = [("NF4", count, ("--base-precision", "nf4")) for count in sorted({1, most})]
        if most > 1 and LLAMA3_70B_BYTES / most + SPACE_BESIDE <= self.args.card_bytes:
            cases.append(("bf16 in parts", most, ("--shard-base", "all")))
        else:
            self.note("memory", f"llama3-70b bf16 in parts: left out on {most} cards", None)
        for what, count, more in cases:
            r = self.step(config, 1, 4096, count, *more, "--recompute", "block", steps=6)
            of_plan = r["device_peak_bytes"] / r["planned_peak_bytes"]
            self.note("memory", f"llama3-70b {what} 1 x 4096 a card, {count} processes", abs(of_plan - 1) < 0.02,
                      peak_gib=round(r["device_peak_bytes"] / 2**30, 2), of_plan=round(of_plan, 4),
                      tokens_per_second=round(r["tokens_per_second"]), of_a_card=round(r["tokens_per_second"] / count))

    def all(self):
        for part in self.args.parts:
            try:
                getattr(self, part)()
            except OutOfTime:
                self.note(part, "left out: no time", None)
            except ChildProcessError as error:
                self.note(part, "failed", False, why=str(error))


def children(pid):
    try:
        return [int(n) for task in pathlib.Path(f"/proc/{pid}/task").iterdir() for n in (task / "children").read_text().split()]
    except OSError:
        return []


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def table(lines):
    text = ["| part | case | | numbers |", "|---|---|---|---|"]
    for line in lines:
        known = {k: v for k, v in line.items() if k not in ("part", "what", "ok", "card", "date") and v is not None}
        numbers = ", ".join(f"{k.replace('_', ' ')} {v:,}" if isinstance(v, (int, float)) and not isinstance(v, bool)
                            else f"{k.replace('_', ' ')} {v}" for k, v in known.items() if k != "sha256")
        text.append(f"| {line['part']} | {line['what']} | {'' if line['ok'] is None else 'ok' if line['ok'] else 'WRONG'} | {numbers} |")
    return "\n".join(text)


def gpus():
    """(name, bytes of one, how many)"""
    lines = subprocess.run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"], capture_output=True,
                           text=True, check=True).stdout.splitlines()
    name, mib = lines[0].rsplit(",", 1)
    return name.strip(), int(mib) << 20, len(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--processes", type=int, default=0, help="at most so many (all GPUs; 4 on a CPU)")
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build"), help="with bench/ and tools/ built")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--model", default=str(HERE.parent / "tests/golden/peft/tiny"), help="of bytes and kill")
    parser.add_argument("--python", default="", help="has torch, transformers and peft: for ddp")
    parser.add_argument("--dtype", default="", choices=("", "bf16", "f32"), help="bf16; f32 on a CPU")
    parser.add_argument("--seconds", type=float, default=580)
    parser.add_argument("--results", default="", help="JSON lines (bench/results/scaling-<device>.jsonl)")
    args = parser.parse_args()
    args.parts = args.parts.split(",")
    if set(args.parts) - set(PARTS):
        parser.error(f"--parts: of {', '.join(PARTS)}")
    args.card, args.card_bytes, most = gpus() if args.device == "cuda" else ("CPU", 0, 4)
    args.processes = args.processes or most
    if args.device == "cuda" and args.processes > most:
        parser.error(f"--processes: there are {most} GPUs")
    args.dtype = args.dtype or ("bf16" if args.device == "cuda" else "f32")
    path = pathlib.Path(args.results or HERE / f"results/scaling-{args.device}.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, open(path, "a", encoding="utf-8") as results:
        scaling = Scaling(args, folder, results)
        scaling.all()
    print(f"{args.card}, {args.dtype}\n")
    print(table(scaling.lines))
    sys.exit(any(line["ok"] is False for line in scaling.lines))


if __name__ == "__main__":
    main()
