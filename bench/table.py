#!/usr/bin/env python3
"""JSON lines of bench_step and bench/peers/ -> Markdown with machine, versions and date: table.py FILE TITLE

Runs of one case (engine, mode, shape, sizes, dtype) are joined: the median of their times, the largest of their peaks.
"""

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys


def case_of(run):
    # The engines name their kinds of recomputation differently; a case only records that they recompute.
    recompute = run.get("recompute", "none") != "none"
    dropout = run.get("dropout", 0) or 0
    return tuple(run.get(k) for k in ("shape", "batch", "seq_len", "rank", "targets", "dtype")) + (dropout, recompute)


def label(case, short=False):
    shape, batch, seq_len, rank, targets, dtype, dropout, recompute = case
    shape = shape if not shape.endswith(".json") else os.path.basename(os.path.dirname(os.path.abspath(shape)))
    text = f"{shape} {batch} x {seq_len}" + (f", r {rank}, {dtype}" if not short else f" {dtype}")
    if not short and targets != "all-linear":
        text += f", {targets}"
    return text + (f", dropout {dropout:g}" if dropout else "") + (", recompute" if recompute else "")


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


def joined(runs, memory):
    """The numbers of one engine in one case, or its error."""
    done = [r for r in runs if "step_seconds" in r]
    if not done:
        return dict(error=next((r["error"] for r in runs if r.get("error")), "no result"))
    seconds = statistics.median(r["step_seconds"] for r in done)
    limits = [r["frozen_gemm_seconds"] for r in done if "frozen_gemm_seconds" in r]
    return dict(
        seconds=seconds, tok_s=done[0]["batch"] * done[0]["seq_len"] / seconds, peak=max(r.get(memory, 0) for r in done),
        first=statistics.median(r.get("first_step_seconds", 0) for r in done),
        limit=statistics.median(limits) if limits else None, last=done[-1])


def print_steps(groups, memory):
    print("| case | engine | tokens/s | step ms | x | peak GiB | of best peer | first step s |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    cases = {case: {name: joined(runs, memory) for name, runs in engines.items()} for case, engines in groups.items()}
    # The frozen products are the same with recompute and without.
    limits = {case[:-1]: r["limit"] for case, rows in cases.items() for r in rows.values() if r.get("limit")}
    for case, rows in cases.items():
        limit = limits.get(case[:-1])
        best = max((r["tok_s"] for name, r in rows.items() if name != "lorikeet" and "tok_s" in r), default=None)
        for name, r in rows.items():
            if "error" in r:
                print(f"| {label(case)} | {name} | {r['error'].replace('|', '/')} | | | | | |")
                continue
            x = f"{r['seconds'] / limit:.2f}" if limit else ""
            of_best = f"{r['tok_s'] / best:.2f}" if best else ""
            print(f"| {label(case)} | {name} | {r['tok_s']:,.0f} | {r['seconds'] * 1e3:,.1f} | {x} "
                  f"| {r['peak'] / 2**30:,.1f} | {of_best} | {r['first']:.0f} |")


def print_profiles(runs):
    """Milliseconds by op family, one column for each case, with the share of the family's own roof."""
    profiled = [(case, r) for case, r in runs if "profile" in r]
    if not profiled:
        return
    names = []
    for _, r in profiled:
        names += [f for f in r["profile"]["families"] if f not in names]
    print("\n## Lorikeet: milliseconds by op family (share of its own roof)\n")
    print("| | " + " | ".join(label(case, short=True) for case, _ in profiled) + " |")
    print("|---|" + "---:|" * len(profiled))

    def line(name, cell):
        print(f"| {name} | " + " | ".join(cell(r) for _, r in profiled) + " |")

    def family(name):
        def cell(r):
            f = r["profile"]["families"].get(name)
            if not f:
                return ""
            return f"{f['seconds'] * 1e3:.2f}" + (f" ({100 * f['of_roof']:.0f} %)" if f["of_roof"] else "")
        return cell

    for name in names:
        line(name, family(name))
    line("gaps", lambda r: "{:.2f}".format(
        1e3 * (r["profile"]["seconds"] - sum(f["seconds"] for f in r["profile"]["families"].values()))))
    line("profiled step", lambda r: f"{r['profile']['seconds'] * 1e3:.2f}")
    line("frozen products alone", lambda r: f"{r['frozen_gemm_seconds'] * 1e3:.2f}")
    line("MFU, measured roof", lambda r: f"{100 * r['useful_flops_per_second'] / r['roof_flops_per_second']:.1f} %")
    if any(r["nominal_flops_per_second"] for _, r in profiled):
        line("MFU, data sheet", lambda r: "" if not r["nominal_flops_per_second"] else
             f"{100 * r['useful_flops_per_second'] / r['nominal_flops_per_second']:.1f} %")
    line("roofs: TFLOP/s, TB/s",
         lambda r: f"{r['roof_flops_per_second'] * 1e-12:.3g}, {r['roof_bytes_per_second'] * 1e-12:.3g}")


def main(path, title):
    runs = [json.loads(line) for line in open(path, encoding="utf-8") if line.strip()]
    on_gpu = any(str(r.get("device", "")).startswith("cuda") for r in runs)
    groups = {}
    for r in runs:
        name = r["engine"] + (f" {r['mode']}" if r.get("mode") else "")
        groups.setdefault(case_of(r), {}).setdefault(name, []).append(r)
    print(f"# {title}\n")
    print(f"{datetime.date.today()}, {cpu_name()}, {platform.system()} {platform.release()}")
    gpu = next((r["description"] for r in runs if on_gpu and r.get("description")), "")
    if gpu:
        driver = first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
        print(f"GPU: {gpu}" + (f", driver {driver}" if driver else ""))
    versions = {k: v for r in runs for k, v in r.get("versions", {}).items()}
    lorikeet = first_line(["git", "describe", "--always", "--dirty"])
    print("Versions: lorikeet " + ", ".join([lorikeet] + [f"{k} {v}" for k, v in versions.items()]) + "\n")
    print_steps(groups, "device_peak_bytes" if on_gpu else "peak_rss_bytes")
    print(f"\nTimes are medians over the timed steps. x: step time by that of the frozen products alone, timed by "
          f"Lorikeet in the case's run. Peak: {'live device memory' if on_gpu else 'of the process (RSS)'}. Of best "
          f"peer: tokens/s by the best peer's. First step: seconds from the start of the process.")
    print_profiles([(case_of(r), r) for r in runs])


if __name__ == "__main__":
    main(*sys.argv[1:])
