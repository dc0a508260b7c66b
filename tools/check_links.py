#!/usr/bin/env python3
"""Links in the documents lead somewhere: README.md, CONTRIBUTING.md and the .md files under docs, bench and examples.

- A relative link's file or folder exists; a part of a page that it names (#heading) does too.
- A file of ours named in backticks, as in `src/autograd/tape.h`, exists. `xyz` stands for any name.
- A link to lines of a source file says what is on them, and that is where it says:

      [`autograd/tape.cpp`, lines 26 to 39](../src/autograd/tape.cpp#L26-L39): `Sink Tape::sink`
      [`autograd/tape.h`, lines 28 to 76](../src/autograd/tape.h#L28-L76): `class Var {` to `class Edge {`

  The lines go from the one that begins with the first text to the end of what begins with the last.
- A heading that ends in "(N lines, M minutes)" counts the lines linked from its section, and gives one minute for ten of
  them, in whole fives.

    check_links.py [--fix] [ROOT]        --fix writes line numbers, their counts and minutes into the documents
"""
import pathlib
import re
import sys

from check_docs import line_range

LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)|<(?:img|source|a)\b[^>]*?\b(?:src|srcset|href)=\"([^\"]+)\"")
LINES = re.compile(r"\[(`[^`]+`)(?:, lines (\d+) to (\d+))?\]\((\S+?)#L(\d+)-L(\d+)\)(?:: `([^`]+)`(?: to `([^`]+)`)?)?")
NAMED = re.compile(r"`((?:src|tools|tests|bench|docs|examples|exercises)/[\w./-]*\w)/?`")
COUNTED = re.compile(r"^(#+ .*)\((\d+) lines, (\d+) minutes\)$")


def without_code(text):
    """The text with blocks of code blank, so that line numbers stay."""
    return re.sub(r"^```.*?^```$", lambda m: "\n" * m.group(0).count("\n"), text, flags=re.M | re.S)


def headings(text):
    """The names that a page's headings have in links, as GitHub and pandoc's gfm make them."""
    names = set()
    for line in without_code(text).splitlines():
        heading = re.match(r"#+ (.*)$", line)
        if not heading:
            continue
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.group(1)).lower()
        name = base = re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-")
        n = 0
        while name in names:
            n += 1
            name = f"{base}-{n}"
        names.add(name)
    return names


def minutes(lines):
    return max(5, (lines // 10 + 4) // 5 * 5)


def check(text, page, exists, read):
    """(the page with its numbers right, what was wrong). `page` is its path below the root, exists(path) says whether
    there is such a file or folder, read(path) is a file's text."""
    wrong, folder = [], pathlib.PurePosixPath(page).parent

    def resolve(target):
        parts = []
        for part in (folder / target).parts:
            if part == "..":
                if not parts:
                    return None
                parts.pop()
            else:
                parts.append(part)
        return "/".join(parts) or "."

    prose = without_code(text)

    def place(match):
        return f"{page}:{prose.count(chr(10), 0, match.start()) + 1}"

    for match in NAMED.finditer(prose):
        if "xyz" not in match.group(1) and not exists(match.group(1)):
            wrong.append(f"{place(match)}: `{match.group(1)}`: there is no such file")
    for match in LINK.finditer(re.sub(r"`[^`\n]*`", lambda m: "`" + "_" * (len(m.group(0)) - 2) + "`", prose)):
        target = match.group(1) or match.group(2)
        if re.match(r"[a-z]+:", target):
            continue
        file, _, part = target.partition("#")
        path = resolve(file) if file else page
        if path is None or not exists(path):
            wrong.append(f"{place(match)}: {target}: there is no such file")
        elif part and path.endswith(".md") and part not in headings(read(path)):
            wrong.append(f"{place(match)}: {target}: the page has no such heading")

    def mend(match):
        name, shown_first, shown_last, target, linked_first, linked_last, begin, end = match.groups()
        path = resolve(target)
        where = f"{page}: {path}#L{linked_first}-L{linked_last}"
        if not begin:
            wrong.append(f"{where}: say what is on these lines")
            return match.group(0)
        try:
            first, last = line_range(read(path), begin, end, path)
        except (OSError, ValueError) as error:
            wrong.append(f"{where}: {error}")
            return match.group(0)
        stated = {(int(linked_first), int(linked_last)), (int(shown_first or 0), int(shown_last or 0))}
        if stated != {(first, last)}:
            wrong.append(f"{where}: that is on lines {first} to {last}")
        to = f" to `{end}`" if end else ""
        return f"[{name}, lines {first} to {last}]({target}#L{first}-L{last}): `{begin}`{to}"

    out = LINES.sub(mend, text).split("\n")
    for i, line in enumerate(out):
        counted = COUNTED.match(line)
        if not counted:
            continue
        section = []
        for below in out[i + 1:]:
            if below.startswith("#"):
                break
            section.append(below)
        n = sum(int(m.group(6)) - int(m.group(5)) + 1 for m in LINES.finditer("\n".join(section)))
        out[i] = f"{counted.group(1)}({n} lines, {minutes(n)} minutes)"
        if out[i] != line:
            wrong.append(f"{page}: '{line}': the section links {n} lines, {minutes(n)} minutes")
    return "\n".join(out), wrong


def self_test():
    files = {"a/x.cpp": "int a;\nint f() {\n  return 1;\n}\n", "b.md": "# A b, `c`\n## A b\n"}

    def exists(path):
        return path in files or path in (".", "a")

    def read(path):
        if path not in files:
            raise FileNotFoundError(f"no file {path}")
        return files[path]

    good = ("## One (3 lines, 5 minutes)\n[`x`, lines 2 to 4](../a/x.cpp#L2-L4): `int f` [b\nb](../b.md#a-b-c) [n](https://n)\n"
            "```\n[no](no)\n```\n")
    assert check(good, "docs/d.md", exists, read) == (good, []), check(good, "docs/d.md", exists, read)
    for moved in [good.replace("L2-L4", "L1-L4"), good.replace("lines 2", "lines 1"), good.replace(", lines 2 to 4", ""),
                  good.replace("(3 lines", "(4 lines")]:
        mended, wrong = check(moved, "docs/d.md", exists, read)
        assert mended == good and wrong, moved
    for bad in [good.replace("../a/x", "../a/y"), good.replace("int f", "int g"), good.replace(": `int f`", ""),
                good.replace("#a-b-c", "#a-c"), good.replace("../b.md", "../../b.md"), good + "`src/no.cpp`\n",
                good + "<img src=\"no.svg\">\n"]:
        assert check(bad, "docs/d.md", exists, read)[1], bad
    assert [minutes(n) for n in (3, 59, 60, 110)] == [5, 5, 10, 15]


def main():
    self_test()
    arguments = sys.argv[1:]
    fix = "--fix" in arguments
    roots = [a for a in arguments if a != "--fix"]
    root = pathlib.Path(roots[0] if roots else pathlib.Path(__file__).parent.parent).resolve()
    pages = [p for name in ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "bench/*.md", "examples/**/*.md", "exercises/**/*.md")
             for p in sorted(root.glob(name))]
    wrong = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        mended, faults = check(text, page.relative_to(root).as_posix(), lambda p: (root / p).exists(),
                               lambda p: (root / p).read_text(encoding="utf-8"))
        if fix and mended != text:
            page.write_text(mended, encoding="utf-8")
        wrong += faults
    print("\n".join(wrong) if wrong else f"all links of {len(pages)} pages lead where they say")
    print(f"lorikeet-tests: {int(not wrong)} passed, {int(bool(wrong))} failed, 0 skipped")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
