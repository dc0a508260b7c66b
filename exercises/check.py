#!/usr/bin/env python3
"""The exercises keep their promises: each fails as it stands, and its solution passes.

    check.py FOLDER_OF_PROGRAMS

An exercise must compile and fail by a check of its test, not by a crash. Its solution must pass, and must differ from it
between the lines "// ---- your code ----" and "// ---- end ----" alone, so that the two can't drift apart. If the programs were
not built (they are only on request), the check is skipped.
"""
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
GAP = re.compile(r"// ---- your code ----\n.*?// ---- end ----\n", re.DOTALL)
COUNTS = re.compile(r"^lorikeet-tests: (\d+) passed, (\d+) failed, 0 skipped$", re.MULTILINE)


def run(program):
    done = subprocess.run([program], capture_output=True, text=True, errors="replace", timeout=120)
    counts = COUNTS.findall(done.stdout)
    passed, failed = map(int, counts[-1]) if counts else (0, 0)
    return done.returncode, passed, failed, done.stdout + done.stderr


def around_gaps(path):
    text = path.read_text(encoding="utf-8")
    return GAP.sub("", text[text.index("#pragma once"):]), len(GAP.findall(text))


def main():
    folder = pathlib.Path(sys.argv[1])
    wrong, names = [], sorted(p.stem for p in HERE.glob("[0-9][0-9]_*.h"))
    for kind in ("tests/*.cpp", "solutions/*.h"):
        if sorted(p.stem for p in HERE.glob(kind)) != names:
            wrong.append(f"{kind}: not one for each exercise")
    if not all((folder / (name + end)).exists() for name in names for end in ("", "_solved")):
        print("the exercises are not built: ninja exercises")
        print("lorikeet-tests: 0 passed, 0 failed, 1 skipped")
        sys.exit(77)
    for name in names:
        code, _, failed, output = run(folder / name)
        if code != 1 or failed == 0:
            wrong.append(f"{name}: an exercise must fail by its checks, but ended with {code}, {failed} of them failed "
                         f"(if you have solved it: well done, the test is for the repository)\n{output}")
        code, passed, failed, output = run(folder / f"{name}_solved")
        if code != 0 or passed == 0:
            wrong.append(f"{name}: the solution ended with {code}, {failed} failed\n{output}")
        outside, gaps = around_gaps(HERE / f"{name}.h")
        if gaps == 0 or (outside, gaps) != around_gaps(HERE / "solutions" / f"{name}.h"):
            wrong.append(f"{name}: exercise and solution differ outside of the gaps")
    print("\n".join(wrong) or f"{len(names)} exercises fail as they stand, and pass when solved")
    print(f"lorikeet-tests: {max(len(names) - len(wrong), 0)} passed, {len(wrong)} failed, 0 skipped")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
