#!/usr/bin/env python3
"""Token ids of sentencepiece-style vocabularies, for tests/test_sentencepiece.cpp.

    python tests/golden/make_sentencepiece_golden.py

Made with tokenizers 0.23.3, sentencepiece 0.2.3, gguf 0.19.0, Python 3.11. Writes tests/golden/text/sentencepiece/:
  tokenizer.json    a BPE with byte fallback in Llama 2's form, trained here
  llama.gguf        a sentencepiece model of type BPE, as a GGUF file without tensors; a space before each text
  gemma.gguf        another: no space before a text, runs of spaces and some words are user-defined pieces
  ids.json          for each form of tokenizer.json, what differs from Llama 2's and its ids; for the models
                    sentencepiece's own ids: count and SHA-256 of the long text's, and 8 digits of each short case's
"""
import hashlib
import io
import json
import os

import gguf
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import pydoc_data.topics
from make_text_golden import HERE, MORE, SNIPPETS, cases, long_text

OUT = os.path.join(HERE, "sentencepiece")
MARK = "\u2581"
BYTES = ["<0x%02X>" % b for b in range(256)]
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
UNMARK = [{"type": "Replace", "pattern": {"String": MARK}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
METASPACE = lambda scheme, split: {"type": "Metaspace", "replacement": MARK, "prepend_scheme": scheme, "split": split}
# What differs between files of the families; the vocabulary is one.
FORMS = {
    "llama2": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": MARK}, REPLACE]},
               "pre_tokenizer": None, "decoder": {"type": "Sequence", "decoders": UNMARK + [STRIP]}},
    "mistral": {"normalizer": None, "pre_tokenizer": METASPACE("first", False), "decoder": {"type": "Sequence", "decoders": UNMARK + [STRIP]}},
    "gemma": {"normalizer": REPLACE, "decoder": {"type": "Sequence", "decoders": UNMARK},
              "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}},
    "metaspace": {"normalizer": {"type": "NFC"}, "pre_tokenizer": METASPACE("always", True), "decoder": METASPACE("always", True)},
    "never": {"normalizer": None, "pre_tokenizer": METASPACE("never", False), "decoder": METASPACE("never", False)},
}
ENGLISH = [t for _, t in sorted(pydoc_data.topics.topics.items())][:40]
PLAIN = [s for s in SNIPPETS if "<" not in s and "hole" not in s]
DECODED = [" Hello  world", "caf\u00e9 \U0001f99c\n\tx ", "  two", "", " "]


def digest(ids):
    return hashlib.sha256(b"".join(i.to_bytes(4, "little") for i in ids)).hexdigest()


def golden(encode):
    ids = encode(long_text())
    return {"count": len(ids), "sha256": digest(ids), "cases": [digest(encode(s))[:8] for s in cases()]}


def train():
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="first", split=True)
    tok.train_from_iterator(ENGLISH + PLAIN * 2, trainers.BpeTrainer(vocab_size=3000, limit_alphabet=180, show_progress=False))
    trained = json.loads(tok.to_str())["model"]
    words = sorted(trained["vocab"], key=trained["vocab"].get)
    names = ["<unk>", "<s>", "</s>"] + BYTES + words
    model = models.BPE(vocab={t: i for i, t in enumerate(names)}, merges=[tuple(m) for m in trained["merges"]],
                       unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    full = Tokenizer(model)
    full.add_special_tokens(["<unk>", "<s>", "</s>"])
    full.add_tokens(MORE)
    file = json.loads(full.to_str())
    for token in file["added_tokens"][:3]:
        token["normalized"] = False
    file["post_processor"] = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                              "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    file["model"]["merges"] = [" ".join(m) for m in file["model"]["merges"]]
    return file | FORMS["llama2"]


def forms(file):
    out = {}
    for name, form in FORMS.items():
        tok = Tokenizer.from_str(json.dumps(file | form))
        encode = lambda s: tok.encode(s, add_special_tokens=False).ids
        out[name] = {"form": form, "decoded": [[s, tok.decode(encode(s))] for s in DECODED], **golden(encode)}
    return out


def sentencepiece_model(name, vocab_size, prefix, **more):
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for t in ENGLISH for line in t.split("\n") if line.strip()] + [s for s in PLAIN if "\0" not in s and "\n" not in s] * 3),
        model_writer=buffer, model_type="bpe", vocab_size=vocab_size, byte_fallback=True, split_digits=True, character_coverage=0.998,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=prefix, allow_whitespace_only_pieces=True,
        num_threads=1, minloglevel=2, **more)
    model = sentencepiece_model_pb2.ModelProto.FromString(buffer.getvalue())
    path = os.path.join(OUT, name + ".gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([p.piece.encode() for p in model.pieces])
    writer.add_token_scores([p.score for p in model.pieces])
    writer.add_token_types([p.type for p in model.pieces])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_space_prefix(prefix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    own = sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())
    return {"decoded": [[s, own.decode(own.encode(s))] for s in DECODED], **golden(own.encode)}


def main():
    os.makedirs(OUT, exist_ok=True)
    file = train()
    with open(os.path.join(OUT, "tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(file, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")
    runs = [MARK * n for n in range(2, 9)]
    result = {"forms": forms(file), "models": {
        "llama": sentencepiece_model("llama", 2500, True),
        "gemma": sentencepiece_model("gemma", 1000, False, user_defined_symbols=runs + ["<b>", "whole", "\n\n"])}}
    with open(os.path.join(OUT, "ids.json"), "w", encoding="utf-8") as f:
        json.dump(result, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")


if __name__ == "__main__":
    main()
