#!/usr/bin/env python3
"""Lorikeet beside its compiled peers over models, lengths, ranks, targets and dropout: the worst ratio first.

    bash bench/compare.sh gpu [PYTHON] --matrix --chunk 1/8 --seconds 1500      every option: --help

The cases follow from the axes and the rule in matrix_cases.py. Each is measured on both sides, one after the other on the
same machine: the peer in a process that stays, so that cases of one model share what it has built, then build/bench/bench_step
in one of its own. A measured case is one JSON line of the results; a second call goes on with those that are missing. Where
a case runs with recomputation, Lorikeet gets as much memory as the peer took and chooses what it computes again.
"""

import argparse
import datetime
import importlib.util
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time

import matrix_cases
import matrix_table
import table

HERE = os.path.dirname(os.path.abspath(__file__))


class OutOfTime(Exception):
    """The limit of --seconds came in the middle of a case: it is measured next time."""


def say(text):
    print(text, file=sys.stderr, flush=True)


class Peer:
    """A process that measures one case after the other: lora_step.py --serve."""

    def __init__(self, python, args):
        self.command = [python, os.path.join(HERE, "peers", "lora_step.py"), "--serve", "--device", args.device, "--dtype",
                        args.dtype, "--steps", str(args.steps), "--warmup", str(args.warmup)]
        self.process = None
        self.model = None

    def measure(self, case, flags, seconds, model):
        """The JSON line of a case, or one that says why there is none. Throws OutOfTime if that took `seconds`."""
        if self.process and (self.process.poll() is not None or self.model != model):
            self.close()  # of another model: compiled code and its memory go with it
        if not self.process:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.model = model
        try:
            self.process.stdin.write(json.dumps(flags) + "\n")
            self.process.stdin.flush()
            if not select.select([self.process.stdout], [], [], seconds)[0]:
                self.close()
                raise OutOfTime
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        code = self.process.wait()
        self.process = None
        return dict(engine="peft", mode=flags["modes"], error=f"the process ended with {code}")

    def close(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


def ours(case, flags, seconds):
    """bench_step's JSON line, or one that says why there is none. Throws OutOfTime if that took `seconds`."""
    try:
        done = subprocess.run(["build/bench/bench_step", *flags], capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise OutOfTime from None
    if done.returncode == 0:
        return json.loads(done.stdout)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return dict(engine="lorikeet", error=f"exit {done.returncode}: {lines[-1].strip()[:300] if lines else ''}")


class Matrix:
    def __init__(self, args, card, folder):
        self.args = args
        self.card = card
        self.folder = folder
        self.modes = args.modes.split(",") if args.modes else ["compile-layer"]
        if not args.modes and args.device == "cuda" and importlib.util.find_spec("unsloth"):
            self.modes.append("unsloth")
        # Unsloth changes transformers, so it has a process of its own.
        self.peers = {own: Peer(args.python, args) for own in (True, False)}
        self.begin = time.monotonic()

    def left(self):
        return self.args.seconds - (time.monotonic() - self.begin) if self.args.seconds else 86400.0

    def allowed(self):
        """Seconds that a process may take."""
        if self.left() <= 0:
            raise OutOfTime
        return min(self.left(), self.args.limit)

    def timed(self, run, *given):
        """run(..., seconds): a result, an error where the process took --limit, OutOfTime where the run's time is over."""
        seconds = self.allowed()
        try:
            return run(*given, seconds)
        except OutOfTime:
            if seconds < self.args.limit:
                raise
            return dict(error=f"took more than {self.args.limit:.0f} s")

    def config_file(self, case):
        path = os.path.join(self.folder, f"{case.model}-{case.layers}.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(case.config(), file)
        return path

    def measure_peers(self, case, config):
        flags = dict(config=config, batch=case.batch, seq_len=case.seq_len, shortest=case.shortest, rank=case.rank,
                     targets=case.target_names(), dropout=case.dropout, recompute=case.recompute)
        results = []
        for mode in self.modes:
            for packed in (False, True) if case.shortest and mode != "unsloth" else (False,):
                peer = self.peers[mode == "unsloth"]
                result = self.timed(lambda s, p=peer, m=mode, k=packed: p.measure(
                    case, {**flags, "modes": m, "packed": k}, s, case.model))
                results.append({"engine": "peft", "mode": mode, "packed": packed, **result})
        return results

    def measure_ours(self, case, config, peers):
        args = self.args
        flags = ["--config", config, "--batch", case.batch, "--seq-len", case.seq_len, "--rank", case.rank, "--targets",
                 case.target_names(), "--dropout", case.dropout, "--dtype", args.dtype, "--steps", args.steps, "--warmup",
                 args.warmup, "--device", args.device.replace("cuda", "cuda:0")]
        if case.shortest:
            flags += ["--shortest", case.shortest]
        if case.recompute:
            peaks = [p["device_peak_bytes"] for p in peers if p.get("device_peak_bytes") and p.get("step_seconds")]
            flags += ["--memory", max(peaks)] if peaks else ["--recompute", "block"]
        flags = [str(f) for f in flags]
        result = self.timed(lambda s: ours(case, flags, s))
        if result.get("error") and any(p.process for p in self.peers.values()):
            self.close()  # a peer's weights may have been in the way
            result = self.timed(lambda s: ours(case, flags, s))
        return result

    def measure(self, case):
        config = self.config_file(case)
        peers = self.measure_peers(case, config)
        lorikeet = self.measure_ours(case, config, peers)
        wanted = {p["trainable"] for p in peers if p.get("trainable")}
        if not lorikeet.get("error") and wanted - {lorikeet["trainable"]}:
            lorikeet["error"] = f"trains {lorikeet['trainable']} numbers, the peer {wanted}: not the same case"
        keep = ("engine", "mode", "packed", "step_seconds", "step_seconds_min", "step_seconds_max", "tokens_per_second",
                "device_peak_bytes", "peak_rss_bytes", "recompute", "trainable", "first_step_seconds", "x", "error", "versions")
        short = [{k: r[k] for k in keep if r.get(k) not in (None, "", {})} for r in (lorikeet, *peers)]
        return dict(case=case.name, card=self.card, date=datetime.date.today().isoformat(), dtype=self.args.dtype,
                    lorikeet=short[0], peers=short[1:])

    def close(self):
        for peer in self.peers.values():
            peer.close()


def card_and_memory(device):
    """The device's name and its bytes."""
    if device == "cpu":
        return table.cpu_name(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    first = subprocess.run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"],
                           capture_output=True, text=True, check=True).stdout.splitlines()[0]
    name, mib = first.rsplit(",", 1)
    return name.strip(), int(mib) << 20


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--python", default=sys.executable, help="has torch, transformers and peft")
    parser.add_argument("--dtype", default="bf16", choices=("f32", "bf16"))
    parser.add_argument("--chunk", default="1/1", metavar="I/N", help="the I-th of N shares that take about equally long")
    parser.add_argument("--seconds", type=float, default=0, help="stop before so many have passed (0: no limit)")
    parser.add_argument("--limit", type=float, default=400, help="seconds that one process may take for a case")
    parser.add_argument("--only", default="", metavar="PATTERN", help="a regular expression that a case's name contains")
    parser.add_argument("--full", action="store_true", help="all combinations of rank, targets and dropout")
    parser.add_argument("--models", default="", help="some of them, with commas")
    parser.add_argument("--lengths", default="", help="instead of " + ",".join(map(str, matrix_cases.LENGTHS)))
    parser.add_argument("--layers", type=int, default=0, metavar="N", help="at most so many layers of a model, on both sides")
    parser.add_argument("--modes", default="", help="of the peer: compile-layer, and unsloth if it is installed; graph, eager")
    parser.add_argument("--steps", type=int, default=8, help="timed steps")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--memory-gib", type=float, default=0, help="of the device; by default it is asked")
    parser.add_argument("--results", default="", help="JSON lines (bench/results/matrix-<device>.jsonl)")
    parser.add_argument("--list", action="store_true", help="print the names of the cases, and whether they are measured")
    parser.add_argument("--table", action="store_true", help="only print the table of the results")
    args = parser.parse_args()
    args.results = args.results or os.path.join(HERE, "results", f"matrix-{args.device}.jsonl")
    if not re.fullmatch(r"[1-9]\d*/[1-9]\d*", args.chunk) or int(args.chunk.split("/")[0]) > int(args.chunk.split("/")[1]):
        parser.error("--chunk: I/N with I from 1 to N")
    unknown = [m for m in args.models.split(",") if m and m not in matrix_cases.MODELS]
    if unknown:
        parser.error(f"--models: unknown {', '.join(unknown)}; known are {', '.join(matrix_cases.MODELS)}")
    return args


def chosen(args, memory):
    """(cases of this call in order, those that fit no device)"""
    names = args.models.split(",") if args.models else list(matrix_cases.MODELS)
    lengths = [int(n) for n in args.lengths.split(",")] if args.lengths else matrix_cases.LENGTHS
    cases, left_out = matrix_cases.generate(memory, args.layers, args.full, names, lengths)
    matching = [c for c in cases if re.search(args.only, c.name)]
    i, n = map(int, args.chunk.split("/"))
    return matrix_cases.chunk(matching, i, n, args.steps + args.warmup), left_out


def measured(args, card):
    """Names of the cases that the results hold for this card."""
    return {line["case"] for line in matrix_table.read(args.results) if (line["card"], line["dtype"]) == (card, args.dtype)}


def run(args, card, cases):
    """Measures what is missing, until there is nothing or no time left."""
    done = measured(args, card)
    missing = [c for c in cases if c.name not in done]
    slower = 1.0  # than estimated
    with tempfile.TemporaryDirectory() as folder, open(args.results, "a", encoding="utf-8") as results:
        matrix = Matrix(args, card, folder)
        try:
            for i, case in enumerate(missing):
                estimate = matrix_cases.estimated_seconds(case, args.steps + args.warmup)
                if matrix.left() < slower * estimate:
                    raise OutOfTime
                say(f"{i + 1} of {len(missing)}: {case.name}")
                start = time.monotonic()
                line = matrix.measure(case)
                results.write(json.dumps(line) + "\n")
                results.flush()
                say("  " + matrix_table.summary(line))
                slower = max(0.5 * slower, (time.monotonic() - start) / estimate)
        except OutOfTime:
            say("out of time: the same call goes on")
        finally:
            matrix.close()


def main():
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the finally that ends the peers
    left_out = []
    if not args.table:
        card, memory = card_and_memory(args.device)
        cases, left_out = chosen(args, args.memory_gib * 2**30 or memory)
        if args.list:
            done = measured(args, card)
            print("\n".join(case.name + ("  measured" if case.name in done else "") for case in cases))
            return
        os.makedirs(os.path.dirname(os.path.abspath(args.results)), exist_ok=True)
        run(args, card, cases)
        done = measured(args, card)
        say(f"chunk {args.chunk}: {sum(c.name in done for c in cases)} of {len(cases)} cases measured")
    text = matrix_table.table(matrix_table.read(args.results), [c.name for c in left_out])
    with open(os.path.splitext(args.results)[0] + ".md", "w", encoding="utf-8") as file:
        file.write(text)
    print(text, end="")


if __name__ == "__main__":
    main()
