#!/usr/bin/env python3
"""Adds up the test cases of Meson's log: count_tests.py build/meson-logs/testlog.json

Each test program ends with "lorikeet-tests: N passed, N failed, N skipped". A program that died before that line
counts as one failed case. Prints the three sums on one line; on stderr the failed programs and the ten slowest.
"""

import json
import re
import sys

LINE = re.compile(r"^lorikeet-tests: (\d+) passed, (\d+) failed, (\d+) skipped$", re.MULTILINE)


def main(path):
    passed = failed = skipped = 0
    seconds = []
    for record in map(json.loads, open(path, encoding="utf-8")):
        counts = LINE.findall(record.get("stdout") or "")
        p, f, s = map(int, counts[-1]) if counts else (0, 0, 0)
        ended_well = record["result"] in ("OK", "SKIP")
        if not ended_well and f == 0:
            f = 1
        if ended_well and not counts:
            f = 1
            print(f"{record['name']}: ended without its lorikeet-tests line", file=sys.stderr)
        if f:
            print(f"FAILED: {record['name']} ({record['result']})", file=sys.stderr)
        seconds.append((record["duration"], record["name"]))
        passed, failed, skipped = passed + p, failed + f, skipped + s
    print("slowest:", ", ".join(f"{name} {s:.0f} s" for s, name in sorted(seconds, reverse=True)[:10]), file=sys.stderr)
    print(passed, failed, skipped)


if __name__ == "__main__":
    main(sys.argv[1])
