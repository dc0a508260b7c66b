#!/usr/bin/env python3
"""Compares the methods of docs/methods.md on rows with references: runs finetune, evaluate, generate, merge and plan, and
prints Markdown tables. Python's standard library is all that it needs.

  bench/methods_table.py --model model.gguf --data e2e_train.jsonl --eval e2e_test.jsonl --out methods --jobs 4 --minutes 8
  bench/methods_table.py ... --part b                only some of the parts: abc, and d for beam search
  bench/methods_table.py ... --budget tiny           a few steps of everything, to see that it runs
  bench/methods_table.py --tables methods/state.json the tables alone

Rates are chosen on rows held out of --data, whose prompts are not trained on; scores come from --eval, where rows with
one prompt are references of one another. What is done is in OUT/state.json after each run, and a script that was ended
goes on from there.
"""

import argparse
import concurrent.futures
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time

from methods_tables import tables
from subspace import similarities

# name: (what finetune is told, learning rates to try)
LORA_RATES = [5e-4, 1.5e-3, 5e-3]
ROWS = {
    "full": (["--method", "full"], [3e-5, 1e-4, 3e-4]),
    "bitfit": (["--method", "bitfit"], [0.005, 0.015, 0.05, 0.15]),
    "bottleneck": (["--method", "bottleneck"], [5e-4, 1.5e-3, 5e-3]),
    "prompt": (["--method", "prompt"], [0.03, 0.1, 0.3, 1]),
    "prefix": (["--method", "prefix"], [0.01, 0.03, 0.1, 0.3]),
    "llama-adapter": (["--method", "llama-adapter"], [0.003, 0.01, 0.03, 0.1]),
    "ia3": (["--method", "ia3"], [0.005, 0.015, 0.05, 0.15]),
    "lora": (["--rank", "4", "--targets", "q_proj,v_proj"], [1.5e-3, 5e-3, 1.5e-2]),
    "lora, all matrices": ([], LORA_RATES),
    "DoRA": (["--dora"], LORA_RATES),
    "rsLoRA": (["--rslora"], [1.5e-4] + LORA_RATES),
    "PiSSA": (["--init", "pissa"], [1.5e-4, 5e-4, 1.5e-3]),
    "LoRA+": (["--loraplus-ratio", "16"], [1.5e-4, 5e-4, 1.5e-3]),
    "lora + prefix": (["--method", "lora,prefix"], LORA_RATES),
    "lora + prompt": (["--method", "lora,prompt"], LORA_RATES),
    "lora + bottleneck": (["--method", "lora,bottleneck"], LORA_RATES),
}
RANKS = [1, 2, 4, 8, 16, 32, 64]
MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "q_proj,k_proj", "q_proj,v_proj", "q_proj,k_proj,v_proj,o_proj",
            "gate_proj,up_proj,down_proj", "all-linear"]
BUDGET_RANK = 32  # the matrices' parameters are those of this rank on q_proj

BUDGETS = {
    "full": dict(steps=200, batch=16, seeds=3, dev=200, test=200, max_tokens=64, speed_rows=12, timed_steps=24),
    "tiny": dict(steps=2, batch=2, seeds=2, dev=4, test=4, max_tokens=8, speed_rows=2, timed_steps=3),
}


class OutOfTime(Exception):
    pass


class State:
    """What is done, by key; written after each run."""

    def __init__(self, path, head):
        self.path, self.lock = path, threading.Lock()
        self.all = dict(head=head, done={}, failed={})
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                self.all = json.load(file)
            settings = ("model", "data", "eval", "budget")
            if any(self.all["head"][k] != head[k] for k in settings):
                sys.exit(f"{path} is of other settings: {self.all['head']}")
            self.all["failed"] = {}  # they are tried again

    def get(self, key):
        return self.all["done"].get(key)

    def put(self, key, value, group="done"):
        with self.lock:
            self.all[group][key] = value
            with open(self.path + ".new", "w", encoding="utf-8") as file:
                json.dump(self.all, file, indent=1)
            os.replace(self.path + ".new", self.path)
        return value


class Bench:
    def __init__(self, args):
        self.args, self.b = args, dict(BUDGETS[args.budget])
        for name in ("steps", "batch", "seeds"):
            if getattr(args, name):
                self.b[name] = getattr(args, name)
        self.end = time.time() + 60 * args.minutes if args.minutes else float("inf")
        os.makedirs(args.out, exist_ok=True)
        head = dict(model=args.model, data=args.data, eval=args.eval, budget=self.b, jobs=args.jobs,
                    date=datetime.date.today().isoformat())
        self.state = State(os.path.join(args.out, "state.json"), head)
        self.split_rows()

    # --- running programs ---

    def path(self, *names):
        return os.path.join(self.args.out, *names)

    def run(self, program, *flags):
        """A program's stdout. Raises RuntimeError with its last words."""
        if time.time() > self.end:
            raise OutOfTime()
        env = dict(os.environ)
        cores = len(os.sched_getaffinity(0))
        env.setdefault("OMP_NUM_THREADS", str(max(1, cores // self.args.jobs)))
        command = [os.path.join(self.args.tools, program), *map(str, flags)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
        if done.returncode:
            raise RuntimeError(f"{program}: " + (done.stderr.strip().splitlines() or ["no word"])[-1])
        return done.stdout

    def step(self, key, make):
        """What `make` gives, or gave in an earlier run of this script."""
        known = self.state.get(key)
        if known is not None:
            return known
        started = time.time()
        value = self.state.put(key, make())
        print(f"{time.time() - started:6.1f} s  {key}", file=sys.stderr, flush=True)
        return value

    # --- rows ---

    def split_rows(self):
        """train and dev of --data with no prompt in both; test: prompts of --eval with all their references."""
        rows = read_rows(self.args.data)
        prompts = list(dict.fromkeys(row["prompt"] for row in rows))
        counts = {}
        for row in rows:
            counts[row["prompt"]] = counts.get(row["prompt"], 0) + 1
        held, n = set(), 0
        while n < self.b["dev"] and len(prompts) > 1:
            prompt = prompts.pop()
            held.add(prompt)
            n += counts[prompt]
        references = {}
        for row in read_rows(self.args.eval):
            mine = references.setdefault(row["prompt"], [])
            mine += [text for text in row.get("references", [row["completion"]]) if text not in mine]
        test = [dict(prompt=p, completion=r[0], references=r) for p, r in references.items()]
        test = test[:: max(1, len(test) // self.b["test"])][: self.b["test"]]
        write_rows(self.path("train.jsonl"), [r for r in rows if r["prompt"] not in held])
        write_rows(self.path("dev.jsonl"), [r for r in rows if r["prompt"] in held][: self.b["dev"]])
        write_rows(self.path("test.jsonl"), test)
        write_rows(self.path("speed.jsonl"), [dict(prompt=r["prompt"]) for r in test[: self.b["speed_rows"]]])

    # --- training ---

    def finetune(self, folder, flags, rate, steps, *more):
        shutil.rmtree(folder, ignore_errors=True)
        self.run("finetune", "--model", self.args.model, "--data", self.path("train.jsonl"), "--eval-data",
                 self.path("dev.jsonl"), "--out", folder, "--steps", steps, "--batch", self.b["batch"], "--schedule",
                 "linear", "--warmup", max(1, steps // 10), "--eval-every", 0, "--keep", "last", "--samples", 0,
                 "--base-precision", "dense",
                 *(["--lr", rate] if rate else []), *flags, *more)

    def dev_losses(self, folder, flags, rates, seed):
        """The loss on dev for each rate; the runs' folders are not kept."""
        losses = {}
        try:
            if len(rates) == 1 or flags[-1:] == ["full"]:  # a run of its own: `full` leaves no base to share
                for rate in rates:
                    self.finetune(folder, flags, rate, self.b["steps"], "--seed", seed)
                    losses[f"{rate:g}"] = read_json(os.path.join(folder, "run.json"))["result"]["eval_after"]["loss"]
            else:
                values = ",".join(f"{rate:g}" for rate in rates)
                self.finetune(folder, flags, None, self.b["steps"], "--seed", seed, "--sweep", f"lr={values}")
                for trial in read_json(os.path.join(folder, "sweep.json"))["trials"]:
                    if trial["state"] == "finished":
                        losses[trial["flags"]["lr"]] = trial["result"]["eval_loss"]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return losses

    def tuned(self, key, flags, rates):
        """The best rate with seed 0. One at the end of the range has its neighbour tried, up to twice."""
        tiny = self.args.budget == "tiny"
        rates = rates[:1] if tiny else list(rates)
        losses = dict(self.step(f"{key}/rates", lambda: self.dev_losses(self.path("try-" + slug(key)), flags, rates, 0)))
        best = min(losses, key=losses.get)
        for _ in range(0 if tiny else 2):
            tried = sorted(float(rate) for rate in losses)
            if float(best) not in (tried[0], tried[-1]):
                break
            more = float(best) * 3 if float(best) == tried[-1] else float(best) / 3
            name = f"{more:.2g}"
            losses.update(self.step(f"{key}/rate {name}",
                                    lambda: self.dev_losses(self.path("try-" + slug(key)), flags, [float(name)], 0)))
            best = min(losses, key=losses.get)
        return float(best)

    def trained(self, key, flags, rate, seed):
        """A run that is kept: its folder, parameters and loss on dev."""
        folder = self.path(slug(key), f"seed{seed}")

        def make():
            self.finetune(folder, flags, rate, self.b["steps"], "--seed", seed)
            run = read_json(os.path.join(folder, "run.json"))
            for path, _, names in os.walk(folder):
                if "checkpoint.safetensors" in names:
                    os.remove(os.path.join(path, "checkpoint.safetensors"))
            files = [os.path.join(path, name) for path, _, names in os.walk(folder) for name in names
                     if name.endswith(".safetensors")]
            return dict(folder=folder, rate=rate, seed=seed, parameters=run["parameters"]["trainable"],
                        dev_loss=run["result"]["eval_after"]["loss"], file_bytes=sum(map(os.path.getsize, files)),
                        dtype=run["dtype"], device=run["device"]["description"])

        return self.step(f"{key}/seed {seed}", make)

    # --- measures of a trained model ---

    def opened(self, folder):
        """Flags that open what was trained: an adapter, or a whole model."""
        if folder and os.path.exists(os.path.join(folder, "config.json")):
            return ["--model", folder]
        return ["--model", self.args.model] + (["--adapter", folder] if folder else [])

    def scores(self, key, folder, *decoding):
        def make():
            out = self.run("evaluate", *self.opened(folder), "--data", self.path("test.jsonl"), "--generate",
                           "--max-tokens", self.b["max_tokens"], "--batch", 400 if decoding else 200, *decoding)
            e2e = json.loads(out)["e2e"]
            return {name: e2e[name] for name in ("bleu", "nist", "rouge_l", "cider")}

        return self.step(key, make)

    def loss(self, key, folder):
        return self.step(key, lambda: json.loads(self.run(
            "evaluate", *self.opened(folder), "--data", self.path("test.jsonl"), "--format", "prompt-completion"))["loss"])

    def speed(self, key, opened):
        """Tokens a second at batch 1: the median of some prompts."""
        def make():
            out = self.run("generate", *opened, "--prompts", self.path("speed.jsonl"), "--batch", 1, "--temperature", 0,
                           "--max-tokens", self.b["max_tokens"], "--weights", "dense", "--json")
            speeds = [json.loads(line)["tokens_per_second"] for line in out.splitlines()]
            return statistics.median(speeds)

        return self.step(key, make)

    def step_time(self, key, flags, rate):
        def make():
            folder = self.path("timed-" + slug(key))
            try:
                self.finetune(folder, flags, rate, self.b["timed_steps"])
                lines = [json.loads(line) for line in open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8")]
                steps = [line["seconds"] for line in lines if "seconds" in line]
                memory = read_json(os.path.join(folder, "run.json"))["memory"]
                return dict(seconds=statistics.median(steps[len(steps) // 3:]), peak=memory["peak_bytes"],
                            tags={tag: of["peak_bytes"] for tag, of in memory["tags"].items()})
            finally:
                shutil.rmtree(folder, ignore_errors=True)

        return self.step(f"{key}/time", make)

    def merged_speed(self, key, folder):
        def make_and_run():
            merged = self.path("merged-" + slug(key))
            shutil.rmtree(merged, ignore_errors=True)
            try:
                self.run("merge", "--model", self.args.model, "--adapter", folder, "--out", merged, "--no-verify")
                return self.speed(f"{key}/merged speed", ["--model", merged])
            finally:
                shutil.rmtree(merged, ignore_errors=True)

        return self.state.get(f"{key}/merged speed") or make_and_run()

    # --- the parts ---

    def chains(self, tasks):
        """Runs tasks side by side. One that fails is recorded, and the others go on."""
        def guarded(name, work):
            try:
                work()
            except OutOfTime:
                self.state.put(name, "out of time", "failed")
            except (RuntimeError, OSError, KeyError, ValueError) as error:
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                self.state.put(name, str(error) or repr(error), "failed")

        with concurrent.futures.ThreadPoolExecutor(self.args.jobs) as pool:
            for future in [pool.submit(guarded, name, work) for name, work in tasks]:
                future.result()

    def rows(self):
        only = self.args.only.split(";") if self.args.only else []
        return {name: row for name, row in ROWS.items() if not only or name in only}

    def method_chain(self, name):
        flags, rates = ROWS[name]
        key = f"a/{name}"
        rate = self.tuned(key, flags, rates)
        for seed in range(self.b["seeds"]):
            folder = self.trained(key, flags, rate, seed)["folder"]
            self.loss(f"{key}/loss {seed}", folder)
            self.scores(f"{key}/scores {seed}", folder)

    def timings(self, name):
        flags, _ = ROWS[name]
        key = f"a/{name}"
        run = self.state.get(f"{key}/seed 0")
        if not run:
            return
        self.step_time(key, flags, run["rate"])
        self.speed(f"{key}/speed", self.opened(run["folder"]))
        if "--method" not in flags or flags[1] in ("ia3", "bitfit"):
            self.merged_speed(key, run["folder"])

    def base(self):
        self.loss("a/base/loss", None)
        self.scores("a/base/scores", None)

    def part_a(self):
        names = self.rows()
        self.chains([("a/base", self.base)] + [(f"a/{n}", lambda n=n: self.method_chain(n)) for n in names])
        # One at a time: these are measured by the clock.
        jobs, self.args.jobs = self.args.jobs, 1
        self.chains([("a/base speed", lambda: self.speed("a/base/speed", self.opened(None)))] +
                    [(f"a/{n} speed", lambda n=n: self.timings(n)) for n in names])
        self.args.jobs = jobs

    def lora_chain(self, key, targets, rank):
        """Two seeds, their loss on dev at the best rate, with alpha = rank as finetune has it."""
        flags = ["--targets", targets, "--rank", str(rank)]
        rate = self.tuned(key, flags, [1.5e-3, 5e-3])
        for seed in (0, 1):
            self.trained(key, flags, rate, seed)

    def part_b(self):
        ranks = [1, 8] if self.args.budget == "tiny" else RANKS
        both = [(targets, rank) for rank in reversed(ranks) for targets in ("q_proj,v_proj", "all-linear")]
        self.chains([(f"b/{t}/{r}", lambda t=t, r=r: self.lora_chain(f"b/{t}/{r}", t, r)) for t, r in both])
        large = max(ranks) if len(ranks) < 3 else 64
        # The seeds differ, as with one seed A of rank 8 would start as rows of A of rank 64.
        small, wide = self.state.get("b/q_proj,v_proj/8/seed 0"), self.state.get(f"b/q_proj,v_proj/{large}/seed 1")
        if small and wide:
            self.chains([("b/subspaces", lambda: self.step("b/subspaces", lambda: similarities(
                small["folder"], wide["folder"], ("q_proj", "v_proj"))))])

    def part_c(self):
        def parameters(targets, rank):
            out = self.run("plan", "--model", self.args.model, "--targets", targets, "--rank", rank, "--json")
            return json.loads(out)["trainable_parameters"]

        def chain(targets):
            budget = parameters("q_proj", BUDGET_RANK)
            rank = max(1, round(budget / parameters(targets, 1)))
            self.state.put(f"c/{targets}/rank", rank)
            self.lora_chain(f"c/{targets}", targets, rank)

        sets = ["q_proj", "q_proj,v_proj"] if self.args.budget == "tiny" else MATRICES
        self.chains([(f"c/{t}", lambda t=t: chain(t)) for t in sets])

    def part_d(self):
        def chain(name):
            run = self.state.get(f"a/{name}/seed 0")
            if run:
                self.scores(f"a/{name}/beams", run["folder"], "--beams", 10, "--length-penalty", 0.9, "--no-repeat-ngram", 4)

        self.chains([(f"a/{n} beams", lambda n=n: chain(n)) for n in self.rows()])


def slug(text):
    return "".join(c if c.isalnum() or c in "-." else "_" for c in text)


def read_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def read_rows(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def write_rows(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", metavar="STATE", help="print the tables of a state.json, run nothing")
    parser.add_argument("--tools", default="build/tools", help="folder of the programs (%(default)s)")
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--data", default="examples/data/e2e_train.jsonl")
    parser.add_argument("--eval", default="examples/data/e2e_test.jsonl")
    parser.add_argument("--out", default="methods-table")
    parser.add_argument("--part", default="abcd", help="of abcd (%(default)s)")
    parser.add_argument("--only", help="rows of part a, separated by semicolons: 'prompt;lora'")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--minutes", type=float, help="start nothing new after this time")
    parser.add_argument("--budget", choices=BUDGETS, default="full")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--seeds", type=int)
    args = parser.parse_args()
    if not args.tables:
        bench = Bench(args)
        for part in args.part:
            getattr(bench, f"part_{part}")()
        args.tables = bench.state.path
    print(tables(read_json(args.tables)))


if __name__ == "__main__":
    main()
