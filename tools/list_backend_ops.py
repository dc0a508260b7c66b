#!/usr/bin/env python3
"""The ops of tensor/backend.h as a macro, so that no class has to repeat their declarations.

    list_backend_ops.py backend.h OUTPUT

An op is a function `virtual void name(parameters) = 0;` between the first ruler after `elementwise` and the end of the
public part of class Backend. OUTPUT is a header with

    #define LK_BACKEND_OPS(OP) \\
      OP(fill, (const Tensor& x, double value), (x, value)) \\
      ...

: name, parameters without their defaults, and arguments that hand them on. Who declares, stubs, forwards or prices every
op expands it; an op that is added to backend.h is in all of them at the next build.
"""
import pathlib
import re
import sys

OP = re.compile(r"\bvirtual\s+void\s+(\w+)\s*\(([^;]*?)\)\s*=\s*0\s*;", re.S)
FIRST, LAST = "// ---- elementwise", "\n protected:"


def parameters(text):
    """The parameters of a declaration, split at its outer commas, without defaults and line breaks."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += c in "<({["
        depth -= c in ">)}]"
        if c == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [" ".join(part.split("=")[0].split()) for part in parts]


def ops(header):
    """(name, parameters) of each op, in the header's order. Raises ValueError where it understands nothing."""
    begin, end = header.find(FIRST), header.find(LAST)
    if begin < 0 or end < begin:
        raise ValueError(f"no part between '{FIRST}' and '{LAST.strip()}'")
    public = re.sub(r"//[^\n]*", "", header[begin:end])
    found = [(name, parameters(text)) for name, text in OP.findall(public)]
    pure = len(re.findall(r"=\s*0\s*;", public))
    if len(found) != pure:
        raise ValueError(f"{pure} pure functions, {len(found)} of them of the form 'virtual void name(...) = 0;'")
    names = [name for name, _ in found]
    if len(set(names)) != len(names):
        raise ValueError("two ops have one name: " + ", ".join(sorted(n for n in set(names) if names.count(n) > 1)))
    return found


def macro(found):
    lines = ["// Made by tools/list_backend_ops.py of tensor/backend.h: OP(name, (parameters), (arguments)).",
             "#pragma once", "", "#define LK_BACKEND_OPS(OP) \\"]
    for name, params in found:
        arguments = [re.search(r"(\w+)$", p).group(1) for p in params]
        lines.append(f"  OP({name}, ({', '.join(params)}), ({', '.join(arguments)})) \\")
    lines[-1] = lines[-1].removesuffix(" \\")
    return "\n".join(lines) + "\n"


def self_test():
    """What it must understand, and what it must refuse."""
    def text(body):
        return f"virtual void not_an_op() = 0;\n  {FIRST} ---\n{body}\n protected:\n  virtual void hidden() = 0;\n"
    got = ops(text("""  // y = x; a comment with virtual void no(int x) = 0;
  virtual void one(const Tensor& y,
                   std::span<const Tensor> xs, const Tensor& addend = {},
                   const Rotation* r = nullptr) = 0;  // trailing
  void plain(int x) { hidden(x); }
  virtual void two(std::map<int, int> m) = 0;"""))
    assert got == [("one", ["const Tensor& y", "std::span<const Tensor> xs", "const Tensor& addend", "const Rotation* r"]),
                   ("two", ["std::map<int, int> m"])], got
    assert "  OP(one, (const Tensor& y, std::span<const Tensor> xs, const Tensor& addend, const Rotation* r), " \
           "(y, xs, addend, r)) \\\n  OP(two, (std::map<int, int> m), (m))\n" in macro(got)
    for bad in [text("virtual int counts(int x) = 0;"), text("virtual void a(int x) = 0; virtual void a(float x) = 0;"),
                "class Backend {};"]:
        try:
            ops(bad)
        except ValueError:
            continue
        raise AssertionError("accepted: " + bad)


def main():
    self_test()
    if len(sys.argv) == 1:
        print("lorikeet-tests: 1 passed, 0 failed, 0 skipped")
        return 0
    header, output = map(pathlib.Path, sys.argv[1:])
    try:
        text = macro(ops(header.read_text(encoding="utf-8")))
    except ValueError as error:
        print(f"{header}: {error}", file=sys.stderr)
        return 1
    output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
