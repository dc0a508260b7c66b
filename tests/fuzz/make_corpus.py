#!/usr/bin/env python3
"""Writes the small seeds of the fuzz targets to ../corpus/{json,safetensors,gguf,template,tokenizer}/seed-*.

Other files there are inputs that once broke something; this script leaves them alone.
"""
import json
import pathlib
import struct

CORPUS = pathlib.Path(__file__).parent.parent / "corpus"


def put(target, name, data):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"seed-{name}").write_bytes(data if isinstance(data, bytes) else data.encode())


put("json", "all", '{"a":[1,-2,3.5e-2,true,false,null,"x\\u00e9\\ud83d\\ude00\\n"],"b":{"c":{}},"":[]}')
put("json", "numbers", "[0,-0,-0.0,18446744073709551615,-9223372036854775808,1e308,5e-324,10000000000000000000000]")
put("json", "utf8", '"aé日😀\U0010ffff"')
put("json", "deep", "[" * 64 + "]" * 64)
put("json", "too-deep", "[" * 65 + "]" * 65)
put("json", "duplicate", '{"a":1,"\\u0061":2}')
put("json", "surrogate", '"\\ud800"')
put("json", "empty", "")


def safetensors(header, data=b""):
    text = header if isinstance(header, str) else json.dumps(header, separators=(",", ":"))
    return struct.pack("<Q", len(text)) + text.encode() + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


put("safetensors", "two", safetensors({"__metadata__": {"format": "pt"}, "a": entry("F32", [2], 0, 8),
                                       "b": entry("BF16", [2, 2], 8, 16)}, bytes(range(16))))
put("safetensors", "dtypes", safetensors({"d": entry("F64", [1], 0, 8), "h": entry("F16", [1, 1, 4], 8, 16),
                                          "i": entry("I64", [], 16, 24), "e": entry("F32", [0, 3], 24, 24),
                                          "s": entry("F4", [2], 24, 25)}, bytes(25)))
put("safetensors", "empty", safetensors("{}      "))
put("safetensors", "overlap", safetensors({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, bytes(12)))
put("safetensors", "gap", safetensors({"a": entry("F32", [1], 4, 8)}, bytes(8)))
put("safetensors", "overflow", safetensors({"a": entry("F32", [2**32, 2**32], 0, 0)}))
put("safetensors", "length", struct.pack("<Q", 2**64 - 1) + b"{}")


def text(s):
    return struct.pack("<Q", len(s)) + s.encode()


def gguf(values, infos, data=b"", version=3):
    """values: (key, type, bytes); infos: (name, ne, type, offset)."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(infos), len(values))
    for key, kind, raw in values:
        out += text(key) + struct.pack("<I", kind) + raw
    for name, ne, kind, offset in infos:
        out += text(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, kind, offset)
    return out + bytes(-len(out) % 32) + data


numbers = [("u8", 0, b"\1"), ("i8", 1, b"\xff"), ("u16", 2, b"\1\0"), ("i16", 3, b"\xff\xff"), ("u32", 4, b"\1\0\0\0"),
           ("i32", 5, b"\xff" * 4), ("f32", 6, struct.pack("<f", 1.5)), ("bool", 7, b"\1"), ("s", 8, text("grüße")),
           ("u64", 10, b"\1" + bytes(7)), ("i64", 11, b"\xff" * 8), ("f64", 12, struct.pack("<d", 1.5))]
put("gguf", "numbers", gguf(numbers, []))
arrays = [("strings", 9, struct.pack("<IQ", 8, 2) + text("a") + text("bc")), ("ints", 9, struct.pack("<IQii", 5, 2, 1, -1)),
          ("none", 9, struct.pack("<IQ", 4, 0)), ("bools", 9, struct.pack("<IQ", 7, 2) + b"\0\1")]
put("gguf", "arrays", gguf(arrays, []))
put("gguf", "tensors", gguf([], [("f32", [2, 3], 0, 0), ("q4_1", [32, 2], 3, 32), ("q8_0", [32], 8, 96), ("k", [256], 12, 160)],
                            bytes(range(1, 33)) + bytes(range(64)) + bytes(64) + bytes(160)))
put("gguf", "alignment", gguf([("general.alignment", 4, struct.pack("<I", 64))], [("a", [1], 1, 0)], bytes(64)))
put("gguf", "wraps", gguf([], [("w", [2**32, 2**32], 0, 0)]))
put("gguf", "counts", b"GGUF" + struct.pack("<IQQ", 3, 2**64 - 1, 2**63))
put("gguf", "nested-array", gguf([("k", 9, struct.pack("<IQIQ", 9, 1, 4, 1))], []))

for file in sorted((CORPUS.parent / "golden" / "text" / "templates").glob("*.jinja")):
    put("template", file.stem, file.read_bytes())
put("template", "strings", "{{ messages[1].content.strip().split('a', 1)[-1][::-1] | replace('', 'x') | tojson | upper }}{{ 'a' 'b' ~ 1.5 ~ [1, (2,), {'k': none}] }}")
put("template", "grow", "{% set ns = namespace(x='ab') %}{% for i in range(99999) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}")
put("template", "cycle", "{% set ns = namespace() %}{% for m in messages %}{% set ns.x = [ns, loop] %}{{ loop.previtem.role }}{% endfor %}")
put("template", "white", "  {%- if true -%} \n a {%+ endif +%}\n{# c -#} \r\n{% raw -%} {{ {%- endraw %}\n")
put("template", "edges", "{{ 9223372036854775807 + 1 }}{{ -7 // 2 % 3 ** 2 }}{{ 'x' * 9999999 }}{{ (((1)))")


def tokenizer(tokens, merges, added=(), **more):
    model = {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges} | more.pop("model", {})
    listed = [{"id": tokens.index(t) if t in tokens else len(tokens) + i, "content": t, "special": True} for i, t in enumerate(added)]
    return json.dumps({"added_tokens": listed, "model": model} | more, ensure_ascii=False, separators=(",", ":"))


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
MARK = "\u2581"
put("tokenizer", "byte-level", tokenizer(["a", "b", "ab", "\u0120", "1"], ["a b"], ["<s>"], pre_tokenizer=LEVEL, decoder={"type": "ByteLevel"}))
put("tokenizer", "digits", tokenizer(["a", "1"], [], pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, LEVEL]},
                                     normalizer={"type": "NFC"}))
BYTES = ["<0x%02X>" % b for b in range(256)]
UNMARK = [{"type": "Replace", "pattern": {"String": MARK}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
put("tokenizer", "llama", tokenizer(BYTES + ["a", "b", MARK, MARK + "a"], [[MARK, "a"]], ["<s>"], model={"byte_fallback": True, "fuse_unk": True},
                                    normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": MARK}, REPLACE]},
                                    decoder={"type": "Sequence", "decoders": UNMARK}))
put("tokenizer", "metaspace", tokenizer(["<unk>", "a", MARK, MARK + "a"], [[MARK, "a"]], ["abc"], model={"unk_token": "<unk>"},
                                        pre_tokenizer={"type": "Metaspace", "replacement": MARK, "prepend_scheme": "first", "split": True},
                                        decoder={"type": "Metaspace", "replacement": MARK, "prepend_scheme": "first"}))
put("tokenizer", "gap", tokenizer(["a"], [], ["b"], pre_tokenizer=LEVEL).replace('"id":1', '"id":7'))
