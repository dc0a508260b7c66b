"""The matrix's JSON lines as a table for each card, the worst ratio first."""

import json
import os
import statistics

GOAL = 1.05  # times the best peer's speed


def read(path):
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def best_peer(line):
    return min((p for p in line["peers"] if "step_seconds" in p), key=lambda p: p["step_seconds"], default=None)


def ratio(line):
    """Lorikeet's speed by the best peer's; None where one side has none."""
    peer = best_peer(line)
    if not peer or "error" in line["lorikeet"]:
        return None
    return peer["step_seconds"] / line["lorikeet"]["step_seconds"]


def peer_name(peer):
    return " ".join(filter(None, [peer.get("mode") or peer["engine"], "packed" if peer.get("packed") else ""]))


def summary(line):
    """A line for the progress of a run."""
    if ratio(line) is not None:
        return f"{ratio(line):.2f} x {peer_name(best_peer(line))}"
    sides = [line["lorikeet"], *line["peers"]]
    return "; ".join(f"{s['engine']}: {s['error']}" for s in sides if "error" in s)


def _gib(result):
    return result.get("device_peak_bytes", result.get("peak_rss_bytes", 0)) / 2**30


def _row(line):
    own, peer = line["lorikeet"], best_peer(line)
    recompute = own.get("recompute", "none")
    return (f"| {ratio(line):.2f} | {line['case']} | {own['tokens_per_second']:,.0f} | {own['step_seconds'] * 1e3:,.1f} "
            f"| {_gib(own):.1f} | {peer_name(peer)} | {peer['step_seconds'] * 1e3:,.1f} | {_gib(peer):.1f} "
            f"| {recompute if recompute != 'none' else ''} |")


def _card(card, lines):
    compared = sorted((line for line in lines if ratio(line) is not None), key=ratio)
    failed = [line for line in lines if "error" in line["lorikeet"]]
    alone = [line for line in lines if "error" not in line["lorikeet"] and not best_peer(line)]
    text = [f"## {card}", ""]
    if compared:
        ratios = [ratio(line) for line in compared]
        below = sum(r < GOAL for r in ratios)
        text += [f"Worst {ratios[0]:.2f} ({compared[0]['case']}), median {statistics.median(ratios):.2f} of {len(ratios)} cases; "
                 f"{below} under {GOAL}, {sum(r < 1 for r in ratios)} under 1.00. {len(failed)} failed here, "
                 f"{len(alone)} at the peers alone.", ""]
    text += [f"- failed: {line['case']}: {line['lorikeet']['error']}" for line in failed] + [""] * bool(failed)
    if compared:
        text += ["| ratio | case | tokens/s | step ms | peak GiB | best peer | its ms | its GiB | computed again |",
                 "|---:|---|---:|---:|---:|---|---:|---:|---|"]
        text += [_row(line) for line in compared] + [""]
    text += [f"- no peer: {line['case']}: {summary(line)}" for line in alone] + [""] * bool(alone)
    return text


def table(lines, left_out=()):
    versions = {k: v for line in lines for p in line["peers"] for k, v in p.get("versions", {}).items()}
    dates = sorted({line["date"] for line in lines})
    text = ["# One LoRA step beside compiled peers", ""]
    if dates:
        text += [f"{dates[0]} to {dates[-1]}; " + ", ".join(f"{k} {v}" for k, v in sorted(versions.items())), ""]
    text += ["Ratio: Lorikeet's tokens/s by the best peer's, both measured in turn on the same machine. A case is "
             "model[/layers]:rows x tokens:rank:targets; a model with /layers has fewer than the published one, on both sides, "
             "so that its head weighs more than in the whole model. Rows of 30 to 300 tokens are packed here; the peer runs "
             "them padded and packed, and the better counts. With `recompute` the peer recomputes each layer, and Lorikeet "
             "what fits in the memory that the peer took.", ""]
    for card in sorted({line["card"] for line in lines}):
        text += _card(card, [line for line in lines if line["card"] == card])
    if left_out:
        text += [f"Left out, as they fit no peer: {', '.join(left_out)}.", ""]
    return "\n".join(text)
