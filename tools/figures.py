#!/usr/bin/env python3
"""Draws the figures of the documents, docs/figures/*.svg, from what a program measured.

    figures.py                      draws from docs/figures/data.json
    figures.py --run PROGRAM        first lets build/bench/figure_data make data.json anew
    figures.py --check [PROGRAM]    changes nothing: fails if a figure is not what data.json gives or, with a program, if
                                    data.json is not what the program gives

The ladder's numbers are those of docs/performance.md, where each must stand. Colours follow the reader's light or dark
setting.
"""
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "figures"

# name: (light, dark)
COLOURS = {"ink": ("#1f2328", "#e6edf3"), "soft": ("#59636e", "#9198a1"), "line": ("#d1d9e0", "#3d444d"),
           "base": ("#8c959f", "#6e7681"), "params": ("#8250df", "#a371f7"), "acts": ("#0969da", "#4493f8"),
           "grads": ("#bf3989", "#db61a2"), "back": ("#bc4c00", "#db6d28"), "optim": ("#1a7f37", "#3fb950"),
           "work": ("#9a6700", "#d29922"), "page": ("#ffffff", "#0d1117")}


class Drawing:
    """Text of an SVG that grows from calls; sizes are in pixels."""

    def __init__(self, width, height, title):
        self.width, self.height, self.title, self.parts = width, height, title, []

    def rect(self, x, y, w, h, fill, extra=""):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" class="f-{fill}" {extra}/>')

    def frame(self, x, y, w, h):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" fill="none" class="s-ink"/>')

    def line(self, x0, y0, x1, y1, stroke="line", extra=""):
        self.parts.append(f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" class="s-{stroke}" {extra}/>')

    def path(self, points, stroke):
        steps = " L ".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.parts.append(f'<path d="M {steps}" fill="none" stroke-width="2" class="s-{stroke}"/>')

    def area(self, points, fill):
        steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polygon points="{steps}" class="f-{fill}"/>')

    def text(self, x, y, words, fill="ink", anchor="start", size=13, extra=""):
        words = words.replace("&", "&amp;").replace("<", "&lt;")
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" class="f-{fill}" '
                          f'{extra}>{words}</text>')

    def svg(self):
        def rules(which):
            return "".join(f".f-{n}{{fill:{c[which]}}}.s-{n}{{stroke:{c[which]}}}" for n, c in COLOURS.items())

        style = f"text{{font-family:system-ui,'DejaVu Sans',sans-serif}}{rules(0)}"
        dark = f"@media (prefers-color-scheme:dark){{{rules(1)}}}"
        body = "\n".join(self.parts)
        return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
                f'height="{self.height}" role="img" aria-label="{self.title}">\n<title>{self.title}</title>\n'
                f'<style>{style}{dark}</style>\n<rect width="100%" height="100%" class="f-page"/>\n{body}\n</svg>\n')


def memory(data):
    """Live memory by tag over one step, stacked."""
    m, d = data["memory"], Drawing(760, 400, "Memory by purpose over one training step of SmolLM2-135M")
    left, top, width, height = 64, 44, 520, 300
    shades = dict(zip(m["tags"], ["base", "params", "acts", "grads", "back", "optim", "work"]))
    most = 4000

    def x(op):
        return left + width * op / m["ops"]

    def y(mib):
        return top + height * (1 - mib / most)

    d.text(left, 24, f"MiB, op by op: {m['shape']}, {m['rows']} x {m['tokens']} tokens, rank {m['rank']}, {m['dtype']}", "soft")
    for mib in range(0, most + 1, 1000):
        d.line(left, y(mib), left + width, y(mib))
        d.text(left - 8, y(mib) + 4, f"{mib:,}", "soft", "end")
    below = [0.0] * len(m["samples"])
    for i, tag in enumerate(m["tags"]):
        above = [b + s[1 + i] / 2**20 for b, s in zip(below, m["samples"])]
        ops = [s[0] for s in m["samples"]]
        d.area([(x(o), y(v)) for o, v in zip(ops, above)] + [(x(o), y(v)) for o, v in zip(ops[::-1], below[::-1])], shades[tag])
        below = above
    for op, words in ((0, "forward"), (m["loss_at"], "loss, then backward"), (m["update_at"], "update")):
        d.line(x(op), top, x(op), top + height + 6, "ink", 'stroke-dasharray="3 3"')
        last = op == m["update_at"]
        d.text(x(op) + (-4 if last else 4), top + height + 20, words, anchor="end" if last else "start")
    peaks = {tag: max(s[1 + i] for s in m["samples"]) / 2**20 for i, tag in enumerate(m["tags"])}
    d.text(left + width + 24, top + 4, "highest here", "soft")
    for i, tag in enumerate(reversed(m["tags"])):
        at = top + 28 + 26 * i
        d.rect(left + width + 24, at - 11, 12, 12, shades[tag])
        d.text(left + width + 42, at, tag)
        d.text(748, at, f"{peaks[tag]:,.0f}", anchor="end")
    d.text(left + width + 24, top + 28 + 26 * 7 + 10, "at one moment", "soft")
    d.text(748, top + 28 + 26 * 7 + 10, f"{m['peak_bytes'] / 2**20:,.0f}", anchor="end")
    d.text(left, 390, "Activations fall while backward runs: each node gives back what it saved. What trains is the thin bands.", "soft")
    return d


def tape(data):
    """The nodes of two layers, and what is live once each has run."""
    t = data["tape"]
    step, left, top, width = 19, 150, 66, 400
    d = Drawing(760, top + step * len(t["nodes"]) + 50, "The tape of a model with two layers")
    most = max(n["live_bytes"] for n in t["nodes"])
    d.text(12, 24, f"{len(t['nodes'])} nodes of {t['layers']} layers, {t['tokens']} tokens, width {t['width']}, rank {t['rank']}, "
           f"{t['dtype']}; live activations once the op has run", "soft")
    d.text(12, 52, "forward records downwards; backward runs upwards", "soft")
    module = {}
    names = ["q", "k", "v", "o", "gate", "up", "down"]
    n_lora = 0
    for i, node in enumerate(t["nodes"]):
        if node["name"] == "lora_linear":
            module[i] = names[n_lora % 7]
            n_lora += 1
    for i, node in enumerate(t["nodes"]):
        at = top + step * i
        lora = node["name"] == "lora_linear"
        d.text(left - 12, at + 13, node["name"] + (f" {module[i]}" if lora else ""), "ink", "end")
        long = width * node["live_bytes"] / most
        d.rect(left, at + 3, long, step - 6, "acts" if lora else "base")
        before = t["nodes"][i - 1]["live_bytes"] if i else 0
        change = (node["live_bytes"] - before) / 1024
        d.text(left + long + 8, at + 13, f"{node['live_bytes'] / 1024:,.0f} KiB ({change:+,.0f})", "soft", size=12)
    end = top + step * len(t["nodes"])
    d.text(12, end + 20, f"{t['kept_bytes'] / 1024:,.0f} KiB are kept for backward; after it {t['bytes_after_backward']} bytes, "
           "the loss, are left.", "soft")
    d.text(12, end + 38, "The embedding and the first norm have no node, as nothing before them trains; their outputs are in the "
           "first bar.", "soft")
    return d


def joined(data):
    """The buffer [W | B ; A] of q, k and v, to scale."""
    j = data["joined"]
    scale, left, top = 340 / j["out"], 130, 74
    w, h, thin = j["in"] * scale, j["out"] * scale, j["thin"] * scale
    d = Drawing(760, 480, "The joined buffer of q, k and v")
    d.text(12, 24, f"One buffer of ({j['out']} + {j['thin']}) x ({j['in']} + {j['thin']}) numbers: q, k and v of SmolLM2-135M "
           f"with rank {j['parts'][0]['rank']}, to scale", "soft")
    d.rect(left, top, w, h, "base", 'fill-opacity="0.45"')
    d.rect(left + w, top, thin, h, "page")
    d.rect(left, top + h, w, thin, "params", 'fill-opacity="0.75"')
    for p, name in zip(j["parts"], ("q", "k", "v")):
        y0, y1 = top + p["begin"] * scale, top + p["end"] * scale
        d.line(left, y1, left + w, y1, "ink", 'stroke-opacity="0.5"')
        d.text(left - 10, (y0 + y1) / 2 + 5, f"{name}: {p['end'] - p['begin']} rows", anchor="end")
        d.rect(left + w + p["column"] * scale, y0, p["rank"] * scale, y1 - y0, "params")
        d.text(left + w / 2, (y0 + y1) / 2 + 5, f"W{name}", anchor="middle")
    d.frame(left, top, w + thin, h + thin)
    d.line(left + w, top, left + w, top + h + thin, "ink")
    d.line(left, top + h, left + w + thin, top + h, "ink")
    d.text(left + w / 2, top - 8, f"{j['in']} columns", anchor="middle")
    d.text(left + w + thin / 2, top - 8, f"B: {j['thin']}", anchor="middle")
    d.text(left - 10, top + h + thin / 2 + 5, f"A: {j['thin']} rows", anchor="end")
    side = left + w + thin + 40
    for i, (words, fill) in enumerate((("forward reads the upper rows:", "soft"), ("y = [x | s] [W | B]ᵀ", "ink"),
                                       ("s = scale x Aᵀ, in the margin", "ink"), ("behind each row of x", "ink"), ("", "ink"),
                                       ("backward reads the left columns:", "soft"), ("dx = [dy | ds] [W ; A]", "ink"),
                                       ("ds = scale dy B, in the margin", "ink"), ("behind each row of dy", "ink"), ("", "ink"),
                                       ("B is block-diagonal: q's factor", "soft"), ("adds to q alone.", "soft"),
                                       ("The corner is never read.", "soft"))):
        d.text(side, top + 40 + 20 * i, words, fill)
    share = 1 - j["in"] * j["out"] / ((j["in"] + j["thin"]) * (j["out"] + j["thin"]))
    d.text(12, 466, f"A, B and the corner are {100 * share:.0f} % of the buffer. Grey is frozen: a Weight that is a view of it.", "soft")
    return d


# tokens/s of SmolLM2-135M, 16 x 512, on an H200; each number stands in docs/performance.md
RUNGS = [("264,110", "LoRA as separate thin products"),
         ("345,278", "joined projections; norms and swiglu again; wgmma at D = 128"),
         ("373,796", "a repeated step as one CUDA graph"),
         ("384,440", "attention on wgmma at D = 64"),
         ("401,900", "dS and dB in one read, dA in one; rotation and swiglu inside"),
         ("427,600", "short rows by a warp, more blocks, a shorter sigmoid")]
PEER = ("203,949", "the best peer: PEFT as one CUDA graph")


def ladder(_):
    """What each rung of the ladder gave."""
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for number, _words in [*RUNGS, PEER]:
        if number not in text:
            raise ValueError(f"docs/performance.md does not have {number}")
    d = Drawing(760, 400, "What each rung of the ladder gave")
    left, top, step, width, most = 20, 48, 48, 600, 450000
    d.text(left, 24, "Training, tokens/s: SmolLM2-135M, 16 x 512 tokens, rank 16, bf16, H200", "soft")
    before = None
    for i, (number, words) in enumerate([PEER, *RUNGS]):
        value, at = int(number.replace(",", "")), top + step * i
        d.text(left, at + 13, words, "soft" if i == 0 else "ink")
        d.rect(left, at + 19, width * value / most, 16, "base" if i == 0 else "acts")
        gain = "" if before is None else f"  +{100 * (value / before - 1):.0f} %"
        d.text(left + width * value / most + 8, at + 32, number + gain)
        before = None if i == 0 else value
    return d


def ranks(data):
    """Loss by step for several ranks, and the least each can reach."""
    r, d = data["ranks"], Drawing(760, 400, "Loss by rank")
    left, top, width, height, most = 56, 44, 520, 300, 2.0
    steps = (len(r["runs"][0]["losses"]) - 1) * r["every"]
    d.text(left, 24, f"Squared error by step; W is frozen and its target differs by a matrix of rank {r['planted']}", "soft")
    for i in range(5):
        value = most * i / 4
        d.line(left, top + height * (1 - value / most), left + width, top + height * (1 - value / most))
        d.text(left - 8, top + height * (1 - value / most) + 4, f"{value:.1f}", "soft", "end")
    for i in range(0, steps + 1, 100):
        d.text(left + width * i / steps, top + height + 20, str(i), "soft", "middle")
    d.text(left + width / 2, top + height + 40, "step", "soft", "middle")
    for run, colour in zip(r["runs"], ("back", "work", "params", "acts")):
        floor = top + height * (1 - run["least"] / most)
        d.line(left, floor, left + width, floor, colour, 'stroke-dasharray="4 4"')
        points = enumerate(run["losses"])
        d.path([(left + width * i * r["every"] / steps, top + height * (1 - v / most)) for i, v in points], colour)
        d.text(left + width + 10, floor + 4, f"rank {run['rank']}: {run['losses'][-1]:.3f}", colour)
    d.text(left + width + 10, top + 12, "dashed: the least that", "soft", size=12)
    d.text(left + width + 10, top + 28, "this rank can reach", "soft", size=12)
    return d


FIGURES = {"memory": memory, "tape": tape, "joined": joined, "ladder": ladder, "ranks": ranks}


def differences(a, b, where=""):
    """Where two JSON values differ: counts and texts exactly, floating-point numbers by over 1 % and 1e-3."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [w for k in a for w in differences(a[k], b[k], f"{where}.{k}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [w for i, (x, y) in enumerate(zip(a, b)) for w in differences(x, y, f"{where}[{i}]")]
    if isinstance(a, float) and isinstance(b, (int, float)):
        return [] if abs(a - b) <= 1e-3 + 0.01 * abs(a) else [f"{where}: {a} and {b}"]
    return [] if a == b else [f"{where}: {str(a)[:40]} and {str(b)[:40]}"]


def main():
    arguments = sys.argv[1:]
    checking, running = "--check" in arguments, "--run" in arguments
    programs = [a for a in arguments if not a.startswith("--")]
    stored = FOLDER / "data.json"
    wrong = []
    if programs:
        made = subprocess.run([programs[0]], check=True, stdout=subprocess.PIPE, text=True).stdout
        if running:
            FOLDER.mkdir(exist_ok=True)
            stored.write_text(made, encoding="utf-8")
        else:
            wrong += differences(json.loads(stored.read_text(encoding="utf-8")), json.loads(made), "data.json")[:5]
    data = json.loads(stored.read_text(encoding="utf-8"))
    for name, draw in FIGURES.items():
        path, svg = FOLDER / f"{name}.svg", draw(data).svg()
        if not checking:
            path.write_text(svg, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != svg:
            wrong.append(f"{path.relative_to(ROOT)} is not what data.json gives: run tools/figures.py")
    print("\n".join(wrong) if wrong else f"{len(FIGURES)} figures are {'up to date' if checking else 'drawn'}")
    if checking:
        print(f"lorikeet-tests: {int(not wrong)} passed, {int(bool(wrong))} failed, 0 skipped")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
