#!/usr/bin/env python3
"""Token ids of the `tokenizers` package and chats rendered by Jinja2, for tests/test_tokenizer.cpp and
tests/test_chat_template.cpp.

    python tests/golden/make_text_golden.py [--gguf SmolLM2-135M-Instruct.gguf] [--templates DIR]

Made with tokenizers 0.23.3, jinja2 3.1.6, gguf 0.19.0, Python 3.11. Writes tests/golden/text/:
  <name>/tokenizer.json   small BPEs, one for each pre-tokenizer, trained here
  snippets.json           what the long text is drawn from (long_text() here and in the test)
  ids.json                ids of the short cases, and count, SHA-256 and head of the long text's ids
  chats.json              conversations as each template renders them
--templates DIR adds longer published templates (NAME.jinja, NAME-VARIANT.jinja, with NAME qwen2.5 or llama3.1): only
their SHA-256 and renderings are kept.
"""
import argparse
import hashlib
import json
import os
import pydoc_data.topics
import re

import jinja2
import jinja2.sandbox
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "text")
LONG_BYTES = 1 << 20

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

SNIPPETS = [
    "The quick brown fox jumps over the lazy dog. ", "It's what we'd've said, isn't it? ", "I'LL, you'Re, we'VE, he'S ",
    "don't can't won't they're she'll I'm ", "'s't're've'm'll'd", "x'\u017f y'\u017fa ", "''' '' ' \"quoted\" ``ticks'' ",
    "In 1984 there were 3,141,592.65 reasons; 2^10 = 1024 and 0xDEADBEEF. ", "1 12 123 1234 12345 123456 1234567890 ",
    "a1b22c333d4444 v1.2.3-rc4 10:30 50% $99.99 \u20ac5 ", "for (int i = 0; i < n; ++i) {\n\tsum += a[i] * b[i];  // dot\n}\n",
    "def f(x):\n    return x ** 2 if x > 0 else -x\n\n\n", "#include <vector>\r\n#define MAX(a, b) ((a) > (b) ? (a) : (b))\r\n",
    "<html><body class=\"x\">&nbsp;</body></html>\n", "https://example.org/a/b?c=d&e=%20f#g ", "{\"key\": [1, 2.5e-3, null, true]}\n",
    "SELECT * FROM t WHERE id=42 -- comment\n", "\\begin{equation} E = mc^2 \\end{equation} ", "snake_case camelCase PascalCase kebab-case ",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u8fd9\u662f\u4e00\u4e2a\u6d4b\u8bd5\u3002", "\u6771\u4eac\u90fd\u306e\u5929\u6c17\u306f\u3069\u3046\u3067\u3059\u304b\u3002\u30ab\u30bf\u30ab\u30ca ",
    "\ud55c\uad6d\uc5b4 \ubb38\uc7a5\uc785\ub2c8\ub2e4. ", "\u1112\u1161\u11ab\u1100\u116e\u11a8 jamo ", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u0661\u0662\u0663 ",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd ", "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd ", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! ", "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u039a\u03cc\u03c3\u03bc\u03b5 ",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e \u0967\u0968\u0969 ", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01 ", "\u0b95\u0bca \u0b95\u0bc6\u0bbe ",
    "na\u00efve caf\u00e9 r\u00e9sum\u00e9 \u00fcber stra\u00dfe \u00c5ngstr\u00f6m \u0153uvre ", "cafe\u0301 re\u0301sume\u0301 A\u030angstro\u0308m ", "q\u0307\u0323 q\u0323\u0307 \u1e0b\u0323 d\u0323\u0307 ",
    "\u212b \u2126 \u212a \u1fee \uf900 \ufb1d \u0344 ", "Ti\u1ebfng Vi\u1ec7t Tie\u0302\u0301ng Vie\u0323\u0302t ", "a\u0301\u0301\u0301\u0323\u0323 e\u0345\u0301 ",
    "\U0001f600\U0001f680\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f1e9\U0001f1ea ", "\u2764\ufe0f\U0001f44d\U0001f3fd ", "\u2160\u2161\u2162 \u00bd\u00b2\u00b3 \u2460\u2461 \u3007\u4e00 \U0001f100 ",
    "\U0001d7ce\U0001d7cf \U00011de0\U00011de5 \U00016ff4 \U00010d40 ", "\u200b\u200c\u200d\u2060\ufeff ", "a\u00a0b\u3000c\u2003d\u2028e\u2029f\u0085g\u202fh\u1680i ",
    "\u00a0\u00a0x \u3000\u3000y \u2003 \u2003z ", "   three spaces", "  two  gaps  ", "\t\ttabs\t and \t mixed \t\n", "\n\n\nlines\n \n  \n   end", "\r\n\r\n \r\n\tcrlf\r\r",
    "trailing   \n", " \n\n  \n", "\u0085\u0085 next line \u0085", "\x00\x01\x02\x1b[31mred\x7f", "\x1c\x1d\x1e\x1f", "\x0b\x0c vertical ",
    "!!! ... ??? --- *** ### @@@ ", "!?'s \"'t\" ('re) ", "(a)[b]{c}<d>/e\\f|g~h`i^j ", "\u2014dash\u2013dash\u2026dots\u201cquotes\u201d ", "\u00a3\u20ac\u00a5 \u2200x\u2203y: x\u2264y \u2211\u222b\u221e ",
    "<|im_start|>user\nHi<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>", "<|endoftext|>", "word<|im_end|>word", "<|im_end|><|im_end|>", "<|im_end", "|im_end|>", "<|im_end|> <|im_start|>",
    "a <lefty> b", "  \n<lefty>\t<lefty>c", "a <righty> b", "<righty> \u3000\n<righty>d", "a  <both>  b<both><lefty><righty> <both>", "wholly holy whole", " whole ", "whole", "_whole_", "(whole)", "\u00e9whole", "whole\u0301",
    "na\u00efvest nai\u0308vest NAIVEST", "<longest> <longest><longest>!", "<longest", "Llama llama LLaMA lora LoRA adapter adapters adaptation ",
    "supercalifragilisticexpialidocious antidisestablishmentarianism ", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ",
    "abababababababababababababababababababababababababababababababababababababababababababababababab ", "                                                                                          ", "----------------------------------------------------------------------------------",
    "The model learns a low-rank update of each frozen matrix; only the two factors have gradients. ", "Once upon a time, in a village by the sea, there lived a bird that could count to seven. ",
    "Water boils at 100 degrees Celsius at sea level, which is 212 degrees Fahrenheit. ", "Please answer the following question in one or two sentences. ",
]
SPACES = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u0085", "\u2028", "\r"]


def long_text():
    """Drawn by a linear congruential generator, so that the C++ test draws the same."""
    state = 20240229

    def draw(n):
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (state >> 33) % n

    ranges = [(0, 0x80), (0x80, 0x800), (0x800, 0x10000), (0x10000, 0x110000)]
    out, size = [], 0
    while size < LONG_BYTES:
        kind = draw(8)
        if kind < 6:
            piece = SNIPPETS[draw(len(SNIPPETS))]
        elif kind == 6:
            first, end = ranges[draw(4)]
            c = first + draw(end - first)
            piece = chr(c) if not 0xD800 <= c < 0xE000 else "\ufffd"
        else:
            piece = SPACES[draw(len(SPACES))]
        out.append(piece)
        size += len(piece.encode())
    return "".join(out)


def cases():
    """Short texts, each with a point; every snippet alone is one."""
    out = ["", " ", "a", "\n", "é", "🦜", "a" * 300, " " * 300, "\n" * 70 + " x", "ab" * 200, "1" * 100, "!" * 100]
    for space in SPACES:
        for left in ("a", "1", "!", ""):
            for right in ("b", "2", "?", "'s", ""):
                out.append(left + space + right)
                out.append(left + " " + space + right)
                out.append(left + space + " " + right)
    out += ["<|im_end|>" + s for s in ("a", " a", "\n", "1")] + [s + "<|im_end|>" for s in ("a", "a ", "\n", "1")]
    return out + SNIPPETS


ADDED = [AddedToken("<|endoftext|>", special=True), AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)]
MORE = [AddedToken("<lefty>", lstrip=True, normalized=False), AddedToken("<righty>", rstrip=True, normalized=False),
        AddedToken("<both>", lstrip=True, rstrip=True, special=True), AddedToken("whole", single_word=True, normalized=False),
        AddedToken("na\u00efvest", normalized=True), AddedToken("<long", normalized=False), AddedToken("<longest>", normalized=False)]

BYTE_LEVEL = lambda own: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own)
SPLIT = lambda p: pre_tokenizers.Split(Regex(p), "isolated")
KINDS = {
    "gpt2": dict(pre=BYTE_LEVEL(True), vocab=2500, alphabet=True),
    "smollm": dict(pre=pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL(True)]), vocab=3000, alphabet=False),
    "llama3": dict(pre=pre_tokenizers.Sequence([SPLIT(LLAMA3), BYTE_LEVEL(False)]), vocab=3000, alphabet=True, ignore_merges=True),
    "qwen2": dict(pre=pre_tokenizers.Sequence([SPLIT(QWEN2), BYTE_LEVEL(False)]), vocab=2500, alphabet=True, nfc=True),
}


def train(name, kind):
    tok = Tokenizer(models.BPE(ignore_merges=kind.get("ignore_merges", False)))
    if kind.get("nfc"):
        tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = kind["pre"]
    tok.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if kind["alphabet"] else []
    english = [t for _, t in sorted(pydoc_data.topics.topics.items())][:40]
    plain = [s for s in SNIPPETS if "<" not in s and "hole" not in s]
    trainer = trainers.BpeTrainer(vocab_size=kind["vocab"], initial_alphabet=alphabet, special_tokens=ADDED, show_progress=False)
    # The vocabulary without an initial alphabet must lack some bytes: those are lost, as in SmolLM2.
    tok.train_from_iterator(english + (plain * 3 if kind["alphabet"] else []), trainer)
    tok.add_tokens(MORE)
    if name == "llama3":  # starts every text with BOS; encode() here adds nothing all the same
        bos = tok.token_to_id("<|endoftext|>")
        tok.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
            single="<|endoftext|> $A", pair="<|endoftext|> $A <|endoftext|> $B", special_tokens=[("<|endoftext|>", bos)])])
    data = json.loads(tok.to_str())
    if name == "smollm":  # the older way to write merges
        data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]
    os.makedirs(os.path.join(HERE, name), exist_ok=True)
    path = os.path.join(HERE, name, "tokenizer.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(data, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")
    return Tokenizer.from_file(path)


def smollm2(path):
    """The model's own tokenizer. (transformers' GGUF import forgets Digits; the vocabulary has no token of
    two digits and none of a space and a digit, so it was trained with it.)"""
    import gguf
    fields = gguf.GGUFReader(path).fields
    get = lambda key: fields["tokenizer.ggml." + key].contents()
    assert get("model") == "gpt2" and get("pre") == "smollm"
    tokens = get("tokens")
    assert not any(re.search(r"[0-9][0-9]|\u0120[0-9]", t) for t in tokens)
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in get("merges")]))
    tok.pre_tokenizer = KINDS["smollm"]["pre"]
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, get("token_type")) if k == 3])
    return tok


def ids_of(tok, text, short):
    ids = tok.encode(text, add_special_tokens=False).ids
    digest = hashlib.sha256(b"".join(i.to_bytes(4, "little") for i in ids)).hexdigest()
    return {"count": len(ids), "sha256": digest, "head": ids[:1000],
            "cases": [tok.encode(s, add_special_tokens=False).ids for s in short]}


CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
          "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
WITH_SYSTEM = ("{%% for message in messages %%}{%% if loop.first and messages[0]['role'] != 'system' %%}{{ '<|im_start|>system\n%s<|im_end|>\n' }}"
               "{%% endif %%}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{%% endfor %%}"
               "{%% if add_generation_prompt %%}{{ '<|im_start|>assistant\n' }}{%% endif %%}")
HEADERS = ("{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + "
           "'<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
           "{% endif %}{{ content }}{% endfor %}")
ASK = "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
ZEPHYR = ("{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
          "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
          "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
          "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}")
TEMPLATES = {
    "chatml": [CHATML, "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}" + CHATML],
    "smollm2": [WITH_SYSTEM % "You are a helpful AI assistant named SmolLM, trained by Hugging Face"],
    "qwen2": [WITH_SYSTEM % "You are a helpful assistant."],
    "llama3": [HEADERS + "{% if add_generation_prompt %}" + ASK + "{% endif %}"],
    "llama3-asks": [HEADERS + ASK],
    "zephyr": [ZEPHYR],
}
TOKENS = {"zephyr": ("<s>", "</s>"), "llama3": ("<|begin_of_text|>", "<|eot_id|>")}
CHATS = [
    [("user", "Hello")],
    [("system", "You are a helpful assistant"), ("user", "Hello"), ("assistant", "Hi there"), ("user", "Who are you"),
     ("assistant", "   I am an assistant   "), ("user", "Another question")],
    [("user", "  spaces\n"), ("assistant", "\n\nlines \u3000\n")],
    [("system", " keep "), ("user", "<|im_end|> {{ 7 * 7 }} {% raw %}"), ("assistant", "caf\u00e9 \U0001f99c")],
    [("user", "a"), ("system", "late"), ("assistant", ""), ("user", "\x1c\x1fx\x1e\u0085\u00a0")],
    [("assistant", "first"), ("user", "second")],
]


def canonical(text):
    return text.replace("\r\n", "\n").replace("\\n", "\n").rstrip("\n ")


def chats(gguf_path, folder):
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    out = []
    texts = [(name, text, True) for name, list_ in TEMPLATES.items() for text in list_]
    if folder:
        for file in sorted(os.listdir(folder)):
            texts.append((file[:-len(".jinja")].split("-")[0], open(os.path.join(folder, file), encoding="utf-8").read(), False))
    if gguf_path:
        import gguf
        own = gguf.GGUFReader(gguf_path).fields["tokenizer.chat_template"].contents()
        assert canonical(own) == canonical(TEMPLATES["smollm2"][0])
    for name, text, keep in texts:
        bos, eos = next((t for n, t in TOKENS.items() if name.startswith(n)), ("", ""))
        template = env.from_string(text)
        rendered = []
        for chat in CHATS:
            messages = [{"role": r, "content": c} for r, c in chat]
            for ask in (False, True):
                rendered.append(template.render(messages=messages, add_generation_prompt=ask, bos_token=bos, eos_token=eos,
                                                 **({"tools": None} if name != "chatml" else {})))
        entry = {"name": name, "sha256": hashlib.sha256(canonical(text).encode()).hexdigest(), "rendered": rendered}
        if keep:
            entry["text"] = text
        out.append(entry)
    return {"chats": CHATS, "templates": out}


def save(name, value):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf")
    parser.add_argument("--templates")
    args = parser.parse_args()
    os.makedirs(HERE, exist_ok=True)
    text, short = long_text(), cases()
    ids = {name: ids_of(train(name, kind), text, short) for name, kind in KINDS.items()}
    if args.gguf:
        ids["smollm2"] = ids_of(smollm2(args.gguf), text, short)
    save("snippets.json", {"snippets": SNIPPETS, "spaces": SPACES, "bytes": LONG_BYTES})
    save("ids.json", {"long_sha256": hashlib.sha256(text.encode()).hexdigest(), "cases": short, "tokenizers": ids})
    save("chats.json", chats(args.gguf, args.templates))


if __name__ == "__main__":
    main()
