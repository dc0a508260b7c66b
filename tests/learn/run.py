#!/usr/bin/env python3
"""A program of examples/learn/ as the tests run it: its claims hold, and it is short.

    run.py SOURCE PROGRAM [ARGUMENT...]

The program prints "[true]  CLAIM" or "[FALSE] CLAIM" for each of its claims and ends with 0 if all of them hold, with 77
if it lacks a device. Its source has fewer than 80 lines.
"""
import os
import pathlib
import subprocess
import sys

LINES = 80


def main():
    source, program, *arguments = sys.argv[1:]
    done = subprocess.run([program, *arguments], capture_output=True, text=True, encoding="utf-8",
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    print(done.stdout, done.stderr, sep="")
    lines = pathlib.Path(source).read_text(encoding="utf-8").count("\n")
    wrong = []
    if done.returncode not in (0, 77):
        wrong.append(f"it ended with {done.returncode}")
    if "[true]" not in done.stdout or "[FALSE]" in done.stdout:
        wrong.append("a claim does not hold, or nothing is claimed")
    if lines >= LINES:
        wrong.append(f"{source} has {lines} lines: fewer than {LINES} may be read in one go")
    print("\n".join(wrong))
    skipped = not wrong and done.returncode == 77
    print(f"lorikeet-tests: {int(not wrong and not skipped)} passed, {int(bool(wrong))} failed, {int(skipped)} skipped")
    sys.exit(1 if wrong else done.returncode)


if __name__ == "__main__":
    main()
