#!/usr/bin/env python3
"""Code in the documents is code that compiles: README.md and docs/*.md.

A block of C++ in a document is preceded by the line

    <!-- from examples/embed/own_op.cpp: the node -->

and must equal that region of the file, which lies between these two lines, less its indentation:

    // region: the node
    // endregion

Code of the engine itself is quoted without marks in it, by how its first line begins:

    <!-- from src/autograd/tape.cpp: "Sink Tape::sink" -->
    <!-- from src/autograd/ops/norm.cpp: "// dx = rstd" to "struct RmsNormNode" -->

The first is that statement or definition, up to its end; the second goes from one line to the end of another's definition.

    check_docs.py [--fix] [ROOT]        --fix writes the regions into the documents
"""
import difflib
import pathlib
import re
import sys
import textwrap

MARK = re.compile(r"<!-- from (\S+): (.+?) -->$")
BEGIN, END = re.compile(r"\s*// region: (.+?)$"), re.compile(r"\s*// endregion$")


def regions(text, path):
    """{name: code} of a source file. Raises ValueError where regions nest, repeat or do not end."""
    found, name, lines = {}, None, []
    for number, line in enumerate(text.splitlines(), 1):
        begin = BEGIN.match(line)
        if begin:
            if name is not None or begin.group(1) in found:
                raise ValueError(f"{path}:{number}: region '{begin.group(1)}' begins in another, or twice")
            name, lines = begin.group(1), []
        elif END.match(line):
            if name is None:
                raise ValueError(f"{path}:{number}: no region ends here")
            found[name] = textwrap.dedent("\n".join(lines)).strip("\n")
            name = None
        elif name is not None:
            lines.append(line)
    if name is not None:
        raise ValueError(f"{path}: region '{name}' does not end")
    return found


def line_that_begins(lines, start, path):
    """The index of the only line that begins with `start`, whatever its indentation. Raises ValueError."""
    at = [i for i, line in enumerate(lines) if line.strip().startswith(start)]
    if len(at) != 1:
        raise ValueError(f"{path}: {len(at)} lines begin with '{start}', not one")
    return at[0]


def end_of(lines, first, path):
    """The index of the last line of the statement or definition that begins at line `first`: where its braces are
    closed and a line ends with ';' or '}'. Raises ValueError if there is none."""
    depth = 0
    if lines[first].startswith("#"):
        return first
    for i in range(first, len(lines)):
        code = re.sub(r"//.*", "", re.sub(r"'[{}]'", "", lines[i])).strip()
        depth += code.count("{") - code.count("}")
        if depth == 0 and code.endswith((";", "}")) and not code.startswith("#"):
            return i
    raise ValueError(f"{path}:{first + 1}: what begins here does not end")


def line_range(text, begin, end, path):
    """(first, last), counted from 1: from the line that begins with `begin` to the end of what begins there or, if `end`
    is given, of what begins with `end`. Raises ValueError."""
    lines = text.splitlines()
    first = line_that_begins(lines, begin, path)
    last = end_of(lines, line_that_begins(lines, end, path) if end else first, path)
    if last < first:
        raise ValueError(f"{path}: '{end}' ends before '{begin}'")
    return first + 1, last + 1


def less_indentation(lines):
    """The lines as one text, less the indentation that they share; preprocessor lines begin at the left and don't count."""
    shared = min((len(line) - len(line.lstrip()) for line in lines if line.strip() and not line.startswith("#")), default=0)
    return "\n".join(line if line.startswith("#") else line[shared:] for line in lines)


QUOTED = re.compile(r'"(.+?)"(?: to "(.+)")?$')


def source_block(text, name, path):
    """The code that a mark names, by its first line or as a region. Raises ValueError."""
    quoted = QUOTED.match(name)
    if quoted:
        first, last = line_range(text, quoted.group(1), quoted.group(2), path)
        return less_indentation(text.splitlines()[first - 1:last])
    found = regions(text, path)
    if name not in found:
        raise ValueError(f"{path} has no region '{name}'")
    return found[name]


def expected(block, language, source, where, read, wrong):
    """The lines that should stand in a block of a document; what is amiss is appended to `wrong`."""
    if source is None:
        if language == "cpp":
            wrong.append(f"{where}: C++ that no file has: say <!-- from FILE: REGION --> before it")
        return block
    path, region = source.groups()
    try:
        code = source_block(read(path), region, path)
    except (OSError, ValueError) as error:
        wrong.append(f"{where}: {error}")
        return block
    want = code.split("\n")
    if block != want:
        wrong.append("\n".join(difflib.unified_diff(block, want, where, path, lineterm="", n=1)))
    return want


def check(document, path, read):
    """(the document with every block as it should be, what was wrong).

    read(path) is a source file's text; it raises OSError for a file that is not there.
    """
    out, wrong, mark, lines = [], [], None, document.splitlines()
    i = 0
    while i < len(lines):
        line = lines[i]
        out.append(line)
        i += 1
        here = MARK.match(line)
        if here:
            mark = here
            continue
        if not line.startswith("```"):
            if mark:
                wrong.append(f"{path}:{i}: no code after the mark")
                mark = None
            continue
        start = i
        while i < len(lines) and lines[i] != "```":
            i += 1
        block = lines[start:i]
        if i == len(lines):
            wrong.append(f"{path}:{start}: this block does not end")
        want = expected(block, line[3:], mark, f"{path}:{start}", read, wrong)
        mark = None
        out += want + lines[i:i + 1]
        i += 1
    return "\n".join(out) + "\n", wrong


def self_test():
    """It must see each way in which a document can leave its source, and mend what can be mended."""
    source = "int a;\n  // region: one\n  int b;\n    int c;\n  // endregion\n// region: two\nint d;\n// endregion\n"
    files = {"x.cpp": source, "nested.cpp": "// region: a\n// region: b\n// endregion\n", "open.cpp": "// region: a\n",
             "twice.cpp": "// region: a\n// endregion\n// region: a\n// endregion\n", "stray.cpp": "// endregion\n"}

    def read(path):
        if path not in files:
            raise FileNotFoundError(f"no file {path}")
        return files[path]

    files["f.cpp"] = "// one\nint f(int x = {}) {\n  if (x) {  // }\n    return 1;\n  }\n  return '}';\n}\nint g;\n"
    quoted = '<!-- from f.cpp: "// one" to "int f(" -->\n```cpp\n' + "\n".join(files["f.cpp"].split("\n")[:7]) + "\n```\n"
    assert check(quoted, "d.md", read) == (quoted, []), check(quoted, "d.md", read)
    assert line_range(files["f.cpp"], "if (x)", None, "f.cpp") == (3, 5)
    assert less_indentation(["  a", "#b", "", "    c"]) == "a\n#b\n\n  c"
    for bad in [quoted.replace("int f(", "int h("), quoted.replace('"// one"', '"int"'), quoted.replace("return 1", "return 2")]:
        assert check(bad, "d.md", read)[1], bad

    good = "text\n<!-- from x.cpp: one -->\n```cpp\nint b;\n  int c;\n```\n```sh\nls\n```\n"
    assert check(good, "d.md", read) == (good, []), check(good, "d.md", read)
    changed = good.replace("int c", "long c")
    mended, wrong = check(changed, "d.md", read)
    assert mended == good and len(wrong) == 1 and "-  long c;" in wrong[0] and "+  int c;" in wrong[0], wrong
    for bad in [good.replace("one", "three"), good.replace("x.cpp", "y.cpp"), "```sh\n```\n```cpp\nint b;\n```\n", "```sh\n",
                "<!-- from x.cpp: one -->\ntext\n"] + [good.replace("x.cpp: one", f"{name}: a")
                                                       for name in ("nested.cpp", "open.cpp", "twice.cpp", "stray.cpp")]:
        assert check(bad, "d.md", read)[1], bad


def main():
    self_test()
    arguments = sys.argv[1:]
    fix = "--fix" in arguments
    roots = [a for a in arguments if a != "--fix"]
    root = pathlib.Path(roots[0] if roots else pathlib.Path(__file__).parent.parent)
    documents = [p for p in [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))] if p.is_file()]
    wrong, blocks = [], 0
    for path in documents:
        text = path.read_text(encoding="utf-8")
        blocks += len(re.findall(MARK.pattern, text, re.MULTILINE))
        mended, faults = check(text, path.relative_to(root), lambda p: (root / p).read_text(encoding="utf-8"))
        if fix and mended != text:
            path.write_text(mended, encoding="utf-8")
        wrong += faults
    print("\n".join(wrong) if wrong else f"{blocks} blocks of code in {len(documents)} documents are those of their files")
    if not blocks:
        print(f"{root}: no document quotes a file")
    failed = bool(wrong) or not blocks
    print(f"lorikeet-tests: {int(not failed)} passed, {int(failed)} failed, 0 skipped")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
