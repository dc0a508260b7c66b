"""The Markdown tables of methods_table.py, from its state.json."""

import statistics

MIB = 2 ** 20


def table(head, rows):
    lines = [head, ["---"] * len(head)] + rows
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def spread(values, digits):
    """mean ± standard deviation, or the one value there is."""
    values = [v for v in values if v is not None]
    if not values:
        return "–"
    text = f"{statistics.mean(values):.{digits}f}"
    return text + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def number(value, digits=0):
    return "–" if value is None else f"{value:,.{digits}f}"


def names_of(done, part):
    return list(dict.fromkeys(key.split("/")[1] for key in done if key.startswith(part + "/")))


def seeds_of(done, key):
    return [done[k] for k in sorted(done) if k.startswith(f"{key}/seed ")]


def numbered(done, key, what):
    return [done[k] for k in sorted(done) if k.startswith(f"{key}/{what} ") and k.split(" ")[-1].isdigit()]


def score_cells(scores):
    digits = dict(bleu=1, nist=2, rouge_l=1, cider=2)
    scale = dict(bleu=1, nist=1, rouge_l=100, cider=1)  # in per cent, as articles print them
    return [spread([s[name] * scale[name] for s in scores], digits[name]) for name in digits]


def quality(done):
    rows = []
    base = done.get("a/base/scores")
    if base:
        rows.append(["the base alone", 0, "", number(done.get("a/base/loss"), 4), *score_cells([base])])
    for name in names_of(done, "a"):
        seeds = seeds_of(done, f"a/{name}")
        if not seeds:
            continue
        rows.append([name, number(seeds[0]["parameters"]), f"{seeds[0]['rate']:g}",
                     spread(numbered(done, f"a/{name}", "loss"), 4), *score_cells(numbered(done, f"a/{name}", "scores"))])
    return table(["method", "trains", "rate", "test loss", "BLEU", "NIST", "ROUGE-L", "CIDEr"], rows)


def beams(done):
    rows = [[name, *score_cells([done[f"a/{name}/beams"]])] for name in names_of(done, "a") if f"a/{name}/beams" in done]
    return table(["method", "BLEU", "NIST", "ROUGE-L", "CIDEr"], rows) if rows else ""


def cost(done):
    tags = ("weights", "params", "gradients", "optimizer", "activations")
    rows = []
    without = done.get("a/base/speed")
    if without:
        rows.append(["the base alone"] + [""] * (3 + len(tags)) + [number(without), "", ""])
    for name in names_of(done, "a"):
        timed, seeds = done.get(f"a/{name}/time"), seeds_of(done, f"a/{name}")
        if not timed or not seeds:
            continue
        speed = done.get(f"a/{name}/speed")
        more = f"{100 * (without / speed - 1):+.0f} %" if speed and without else ""
        rows.append([name, f"{1000 * timed['seconds']:.1f}", number(timed["peak"] / MIB),
                     *(number(timed["tags"].get(tag, 0) / MIB, 1) for tag in tags),
                     number(seeds[0]["file_bytes"] / 1e6, 2), number(speed), more,
                     number(done.get(f"a/{name}/merged speed"))])
    return table(["method", "ms a step", "peak MiB", *tags, "file MB", "tokens/s", "time a token", "merged, tokens/s"],
                 rows) if rows else ""


def lora_cells(done, key):
    seeds = seeds_of(done, key)
    return [number(seeds[0]["parameters"]), f"{seeds[0]['rate']:g}", spread([s["dev_loss"] for s in seeds], 4)]


def ranks(done):
    targets = names_of(done, "b")
    all_ranks = sorted({int(key.split("/")[2]) for key in done if key.startswith("b/") and key.count("/") == 3})
    rows = []
    for rank in all_ranks:
        row = [rank]
        for t in ("q_proj,v_proj", "all-linear"):
            key = f"b/{t}/{rank}"
            row += lora_cells(done, key) if t in targets and seeds_of(done, key) else ["–"] * 3
        rows.append(row)
    return table(["rank", "q, v: trains", "rate", "dev loss", "all: trains", "rate", "dev loss"], rows) if rows else ""


def subspaces(done):
    found = done.get("b/subspaces")
    if not found:
        return ""
    text = []
    for module in ("q_proj", "v_proj"):
        cells = {tuple(map(int, key.split(","))): value for key, value in found[module].items()}
        columns = sorted({j for _, j in cells})
        rows = [[i] + [f"{cells[i, j]:.3f}" if (i, j) in cells else "–" for j in columns]
                for i in sorted({i for i, _ in cells})]
        rows.append(["random, i = 1"] + [f"{j / found['width']:.3f}" for j in columns])
        text.append(f"{module} of layer {found['layer']}:\n\n" + table(["i \\ j"] + columns, rows))
    return "\n\n".join(text)


def matrices(done):
    rows = [[name, done.get(f"c/{name}/rank"), *lora_cells(done, f"c/{name}")] for name in names_of(done, "c")
            if seeds_of(done, f"c/{name}")]
    return table(["matrices", "rank", "trains", "rate", "dev loss"], rows) if rows else ""


def tables(state):
    """All tables for which there are numbers, as Markdown."""
    done, head = state["done"], state["head"]
    budget = head["budget"]
    runs = [value for key, value in done.items() if "/seed " in key]
    where = f"{runs[0]['device']}, {runs[0]['dtype']}" if runs else "nothing has been trained"
    text = [f"{where}, {head['date']}. {head['model'].split('/')[-1]}, {head['data'].split('/')[-1]}: {budget['steps']} steps of "
            f"{budget['batch']} rows, linear after a tenth of warm-up, rate chosen by the loss on {budget['dev']} held-out "
            f"rows; {budget['test']} prompts of {head['eval'].split('/')[-1]} scored."]
    parts = (
        (f"Quality, {budget['seeds']} seeds, greedy", quality(done) if names_of(done, "a") else ""),
        ("One seed, 10 beams, length penalty 0.9, no 4-gram twice", beams(done)),
        ("Cost, each run alone; generation at batch 1", cost(done)),
        ("Rank (alpha = rank), 2 seeds", ranks(done)),
        ("Subspaces of A: rank 8 (i) and the largest (j)", subspaces(done)),
        ("Which matrices, at one number of parameters, 2 seeds", matrices(done)))
    for title, content in parts:
        if content:
            text.append(f"### {title}\n\n{content}")
    if state["failed"]:
        text.append("Left out:\n\n" + "\n".join(f"- {key}: {why}" for key, why in state["failed"].items()))
    return "\n\n".join(text)
