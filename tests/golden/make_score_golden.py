#!/usr/bin/env python3
"""Writes text_scores.json: BLEU by sacrebleu, ROUGE-L by rouge_score and the E2E challenge's scores, by their formulas
below, on hypotheses and references.

    pip install sacrebleu==2.6.0 rouge-score==0.1.2
    python3 tests/golden/make_score_golden.py

Sentences of examples/data/e2e_test.jsonl that are changed by chance, and lines that try the tokenizer's rules.
"""
import json
import math
import pathlib
import random
import string
from collections import Counter

import sacrebleu
from rouge_score import rouge_scorer

HERE = pathlib.Path(__file__).parent
E2E = HERE.parents[1] / "examples/data/e2e_test.jsonl"

LINES = ["", " ", "Hello, world!", "3,000.50 is not 3, 000 . 50", "a.b,c d.5 5.d -5 3-4 3-a a-3 --", "&quot;A&amp;B&lt;C&gt;&quot; &amp;lt;",
         "don't stop 'quoted' text", "x<skipped>y -\nz\nw", "caf\u00e9. \u00fcber,\u4f60\u597d\uff0c\u4e16\u754c\u3002 .\u00e9", "a\u00a0b\u3000c\u2003d\x1ce\x85f\u200bg",
         "tab\tand  spaces   ", "trailing newline\n", "[x]{y}(z)/w\\v^u_t`s~r|q", "1.2.3.4,5,6..7,,8", "...", "$5.00, 10%; #1: @you = 'a+b*c'?",
         "The \u212aelvin and \u0130stanbul \u0130 I\u0307x", "ALL CAPS and mixed Case", "e.g. i.e., etc.", "\U0001F600. smile ,\U0001F600",
         "100-200 pages, 7-", "na\u00efve co-operation\u2014dash", "a . , b", "5. 6", ",5 .5 5, 5."]


def changed(rng, text):
    words = text.split()
    kind = rng.randrange(6)
    if kind == 0:
        return text
    if kind == 1:
        return " ".join(words[: max(1, len(words) - rng.randrange(1, 5))])
    if kind == 2:
        return " ".join(words + rng.sample(words, min(3, len(words))))
    if kind == 3:
        rng.shuffle(words)
        return " ".join(words)
    if kind == 4:
        return "".join(c for c in text if c not in ".,")
    return text.upper()


# ---- the scores of the E2E challenge, written from the papers' formulas -------------------------------------------

LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
TOKENIZE = sacrebleu.metrics.bleu.BLEU().tokenizer


def words(text):
    return TOKENIZE(text.translate(LOWER).rstrip()).split()


def bare(text):
    """Without tokens that are nothing but ASCII punctuation."""
    return [w for w in words(text) if any(c.isalnum() or ord(c) > 127 for c in w)]


def grams(tokens, n):
    return Counter(tuple(tokens[i:i + n]) for i in range(len(tokens) - n + 1))


def nist(hypotheses, references):
    """Doddington 2002, as mteval-v13a: information from all references, clipped matches, mean length of references."""
    all_grams, total, ref_length = Counter(), 0, 0
    for refs in references:
        for ref in refs:
            total += len(words(ref))
            for n in range(1, 6):
                all_grams.update(grams(words(ref), n))
        ref_length += sum(len(words(ref)) for ref in refs) / len(refs)
    score = 0
    for n in range(1, 6):
        matched = count = 0
        for hyp, refs in zip(hypotheses, references):
            most = Counter()
            for ref in refs:
                most |= grams(words(ref), n)
            for gram, k in grams(words(hyp), n).items():
                count += k
                if gram in most:
                    before = total if n == 1 else all_grams[gram[:-1]]
                    matched += min(k, most[gram]) * math.log2(before / all_grams[gram])
        score += matched / max(count, 1)
    ratio = sum(len(words(h)) for h in hypotheses) / ref_length if ref_length else 0
    if ratio <= 0:
        return 0.0
    return score * (1 if ratio >= 1 else math.exp(math.log(0.5) * (math.log(ratio) / math.log(1.5)) ** 2))


def lcs(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def rouge(hypotheses, references, beta=1.2):
    """Lin 2004, as in the COCO captioning scripts: precision and recall each of the best reference."""
    total = 0
    for hyp, refs in zip(hypotheses, references):
        h = bare(hyp)
        p = max((lcs(bare(r), h) / len(h) if h else 0) for r in refs)
        r = max((lcs(bare(r), h) / len(bare(r)) if bare(r) else 0) for r in refs)
        total += (1 + beta ** 2) * p * r / (r + beta ** 2 * p) if p and r else 0
    return total / len(hypotheses)


def cider(hypotheses, references, sigma=6.0):
    """Vedantam et al. 2015, CIDEr-D; lengths count bigrams, as in the COCO captioning scripts."""
    with_gram = Counter()
    for refs in references:
        with_gram.update({g for r in refs for n in range(1, 5) for g in grams(bare(r), n)})
    logs = math.log(len(references))

    def vector(text, n):
        return {g: k * (logs - math.log(max(1, with_gram[g]))) for g, k in grams(bare(text), n).items()}

    def norm(v):
        return math.sqrt(sum(x * x for x in v.values()))

    total = 0
    for hyp, refs in zip(hypotheses, references):
        for ref in refs:
            off = sum(grams(bare(hyp), 2).values()) - sum(grams(bare(ref), 2).values())
            for n in range(1, 5):
                h, r = vector(hyp, n), vector(ref, n)
                dot = sum(min(x, r[g]) * r[g] for g, x in h.items() if g in r)
                norms = norm(h) * norm(r)
                total += 10 / 4 / len(refs) * (dot / norms if norms else dot) * math.exp(-off ** 2 / (2 * sigma ** 2))
    return total / len(hypotheses)


def e2e(hypotheses, references, streams):
    lower = [[None if r is None else r.translate(LOWER) for r in stream] for stream in streams]
    return {"bleu": sacrebleu.corpus_bleu([h.translate(LOWER) for h in hypotheses], lower).score,
            "nist": nist(hypotheses, references), "rouge_l": rouge(hypotheses, references),
            "cider": cider(hypotheses, references)}


def corpus(hypotheses, references):
    most = max(map(len, references))
    streams = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
    bleu = sacrebleu.corpus_bleu(hypotheses, streams)
    rouge = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    each = [rouge.score_multi(r, h)["rougeL"] for h, r in zip(hypotheses, references)]
    return {"hypotheses": hypotheses, "references": references,
            "bleu": {"score": bleu.score, "precisions": bleu.precisions, "bp": bleu.bp, "sys_len": bleu.sys_len,
                     "ref_len": bleu.ref_len},
            "e2e": e2e(hypotheses, references, streams),
            "rouge_l": [[s.precision, s.recall, s.fmeasure] for s in each]}


def main():
    rng = random.Random(20)
    rows = [json.loads(line) for line in E2E.open(encoding="utf-8")][::25]
    texts = [r["references"][:4] for r in rows]
    tokenizer = sacrebleu.metrics.bleu.BLEU().tokenizer
    hard = [rng.choice(LINES) for _ in LINES]
    out = {
        "tokens": [[line, tokenizer(line).split()] for line in LINES],
        "corpora": [
            corpus([changed(rng, rng.choice(t)) for t in texts], texts),                        # many references each
            corpus([changed(rng, t[0]) for t in texts], [t[:1] for t in texts]),                # one
            corpus(LINES, [[h, l + " x"] for h, l in zip(hard, LINES)]),                        # hard lines
            corpus(["the cat sat"], [["the cat sat on the mat"]]),                              # no 4-gram at all
            corpus(["the cat sat on a mat now"], [["a cat on the mat sat then"]]),              # orders without a match
            corpus(["nothing here fits"], [["entirely other words"]]),                          # no match
            corpus(["one two three four five six"], [["one two three four five six seven", "one two three four five"]]),
            corpus(["", ""], [["a b c"], ["d"]]),                                                # nothing generated
        ],
    }
    (HERE / "text_scores.json").write_text(json.dumps(out, ensure_ascii=True, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
