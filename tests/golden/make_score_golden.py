#!/usr/bin/env python3
"""Writes text_scores.json: BLEU by sacrebleu and ROUGE-L by rouge_score on hypotheses and references.

    pip install sacrebleu==2.6.0 rouge-score==0.1.2
    python3 tests/golden/make_score_golden.py

Sentences of examples/data/e2e_test.jsonl that are changed by chance, and lines that try the tokenizer's rules.
"""
import json
import pathlib
import random

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


def corpus(hypotheses, references):
    most = max(map(len, references))
    streams = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
    bleu = sacrebleu.corpus_bleu(hypotheses, streams)
    rouge = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    each = [rouge.score_multi(r, h)["rougeL"] for h, r in zip(hypotheses, references)]
    return {"hypotheses": hypotheses, "references": references,
            "bleu": {"score": bleu.score, "precisions": bleu.precisions, "bp": bleu.bp, "sys_len": bleu.sys_len,
                     "ref_len": bleu.ref_len},
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
