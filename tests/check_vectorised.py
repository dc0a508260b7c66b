#!/usr/bin/env python3
"""Every clone that LK_SIMD (cpu/fast/simd.h) makes for AVX2 was vectorised: its machine code has 256-bit registers.

A condition around a load or store of BF16 is enough to keep the compiler from it, and the loop still gives the right
numbers, eight times slower.

    check_vectorised.py LIBRARY...       exits 77 where there is nothing to look at: no objdump, no clones
"""
import re
import shutil
import subprocess
import sys

if not shutil.which("objdump"):
    print("no objdump here")
    print("lorikeet-tests: 0 passed, 0 failed, 1 skipped")
    sys.exit(77)

clones = {}  # name: whether a 256-bit register was seen
for library in sys.argv[1:]:
    listing = subprocess.run(["objdump", "-d", "-C", "--no-show-raw-insn", library], stdout=subprocess.PIPE, text=True,
                             check=True).stdout
    name = None
    for line in listing.splitlines():
        if head := re.match(r"[0-9a-f]+ <(.*\[clone \.arch_x86_64_v3\])>:$", line):
            name = head.group(1)
            clones.setdefault(name, False)
        elif line.endswith(">:"):
            name = None
        elif name and "%ymm" in line:
            clones[name] = True

if not clones:
    print("nothing here was compiled for several processors")
    print("lorikeet-tests: 0 passed, 0 failed, 1 skipped")
    sys.exit(77)
plain = sorted(name for name, seen in clones.items() if not seen)
for name in plain:
    print(f"{name}: the AVX2 clone was not vectorised")
print(f"{len(clones)} functions have a clone for AVX2")
print(f"lorikeet-tests: {0 if plain else 1} passed, {1 if plain else 0} failed, 0 skipped")
sys.exit(bool(plain))
