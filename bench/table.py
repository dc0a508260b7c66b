#!/usr/bin/env python3
"""JSON lines of bench_step and bench/peers/ -> a Markdown table with the machine: table.py FILE TITLE

Runs of one case (engine, mode, shape, sizes, dtype) are joined: the median of their times, the largest of their peaks.
"""

import datetime
import json
import platform
import re
import statistics
import subprocess
import sys

CASE = ("shape", "batch", "seq_len", "rank", "targets", "dtype")


def first_line(command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


def cpu_name():
    try:
        names = re.findall(r"^model name\s*: (.*)$", open("/proc/cpuinfo", encoding="utf-8").read(), re.MULTILINE)
        return f"{names[0]}, {len(names)} threads"
    except (OSError, IndexError):
        return platform.processor()


def mib(n):
    return f"{n / 2**20:,.0f} MiB" if n else ""


def main(path, title):
    runs = [json.loads(line) for line in open(path, encoding="utf-8") if line.strip()]
    on_gpu = any(str(r.get("device", "")).startswith("cuda") for r in runs)
    memory = "device_peak_bytes" if on_gpu else "peak_rss_bytes"
    groups = {}
    for r in runs:
        name = r["engine"] + (f" {r['mode']}" if r.get("mode") else "")
        groups.setdefault(tuple(r.get(k) for k in CASE), {}).setdefault(name, []).append(r)
    print(f"# {title}\n")
    print(f"{datetime.date.today()}, {cpu_name()}, {platform.system()} {platform.release()}")
    for r in runs:
        if on_gpu and r.get("description"):
            print(f"GPU: {r['description']}")
            break
    versions = next((r["versions"] for r in runs if "versions" in r), {})
    lorikeet = first_line(["git", "describe", "--always", "--dirty"])
    print("Versions: lorikeet " + ", ".join([lorikeet] + [f"{k} {v}" for k, v in versions.items()]) + "\n")
    print("| case | engine | tokens/s | step | against lorikeet | peak memory |")
    print("|---|---|---|---|---|---|")
    for case, engines in groups.items():
        shape, batch, seq_len, rank, _, dtype = case
        label = f"{shape} {dtype}, {batch} x {seq_len}, rank {rank}"
        ours = [r["step_seconds"] for r in engines.get("lorikeet", []) if "step_seconds" in r]
        for name, results in engines.items():
            times = [r["step_seconds"] for r in results if "step_seconds" in r]
            if not times:
                print(f"| {label} | {name} | {results[0].get('error', 'no result')} | | | |")
                continue
            seconds = statistics.median(times)
            ratio = f"{seconds / statistics.median(ours):.2f} x the time" if ours else ""
            peak = max(r.get(memory, 0) for r in results)
            print(f"| {label} | {name} | {batch * seq_len / seconds:,.0f} | {seconds * 1e3:,.1f} ms | {ratio} | {mib(peak)} |")
    print("\nTimes are medians over the timed steps" + (f"; peak memory is {'live device memory' if on_gpu else 'the process (RSS)'}."))


if __name__ == "__main__":
    main(*sys.argv[1:])
