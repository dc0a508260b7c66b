#!/usr/bin/env python3
"""Snippets that must not compile: the type system's half of the proof that frozen stays frozen.

    run.py --include SRC [--gcc] -- COMPILER ARGUMENTS...

control.cpp must compile: it has the same lines with the right types, so that a broken include path
or a renamed function cannot let the others pass. Every other snippet must be refused, and the
compiler's message must contain the text after "// expect:": refused for the right reason. The texts
are those of GCC; with another compiler only the refusal counts.
"""
import argparse
import os
import pathlib
import subprocess
import sys


def compile_snippet(compiler, include, path):
    command = [*compiler, "-std=c++20", "-fsyntax-only", "-fno-diagnostics-color", f"-I{include}", str(path)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})


def expected(path):
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("// expect: "):
            return line.removeprefix("// expect: ")
    raise SystemExit(f"{path}: no line '// expect: TEXT'")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--include", required=True, help="the folder src/")
    parser.add_argument("--gcc", action="store_true", help="the compiler is GCC: compare its messages")
    parser.add_argument("compiler", nargs="+")
    options = parser.parse_args()
    folder = pathlib.Path(__file__).parent
    problems = []

    control = folder / "control.cpp"
    done = compile_snippet(options.compiler, options.include, control)
    if done.returncode != 0:
        problems.append(f"{control.name} must compile, but:\n{done.stderr}")

    snippets = sorted(p for p in folder.glob("*.cpp") if p != control)
    if not snippets:
        problems.append(f"{folder}: no snippets")
    for path in snippets:
        done = compile_snippet(options.compiler, options.include, path)
        if done.returncode == 0:
            problems.append(f"{path.name} compiles, but must not")
        elif options.gcc and expected(path) not in done.stderr:
            problems.append(f"{path.name} is refused, but not for its reason:\n{done.stderr}")

    print("\n".join(problems) or f"{len(snippets)} snippets refused, the control compiles")
    print(f"lorikeet-tests: {len(snippets) + 1 - len(problems)} passed, {len(problems)} failed, 0 skipped")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
