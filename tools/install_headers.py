#!/usr/bin/env python3
"""Installs the headers that src/lorikeet.h reaches, under include/lorikeet/: part of `meson install`.

Each of our own includes, "nn/batch.h", becomes "lorikeet/nn/batch.h", so that one -I is enough and
no folder of ours can meet one of the embedder's. Usage: install_headers.py SRC INCLUDE_FOLDER
(relative to the prefix, which meson passes in MESON_INSTALL_DESTDIR_PREFIX).
"""
import os
import pathlib
import re
import sys

INCLUDE = re.compile(r'^(\s*#\s*include\s*)"([^"]+)"', re.MULTILINE)


def reachable(src, first):
    """Paths under src of `first` and of everything that it includes with "..."."""
    found, queue = set(), [first]
    while queue:
        name = queue.pop()
        if name in found:
            continue
        found.add(name)
        queue += [target for _, target in INCLUDE.findall((src / name).read_text(encoding="utf-8"))]
    return sorted(found)


def main():
    src = pathlib.Path(sys.argv[1])
    target = pathlib.Path(os.environ["MESON_INSTALL_DESTDIR_PREFIX"]) / sys.argv[2] / "lorikeet"
    headers = reachable(src, "lorikeet.h")
    for name in headers:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = INCLUDE.sub(r'\1"lorikeet/\2"', (src / name).read_text(encoding="utf-8"))
        path.write_text(text, encoding="utf-8")
    if not os.environ.get("MESON_INSTALL_QUIET"):
        print(f"Installing {len(headers)} headers to {target}")


if __name__ == "__main__":
    main()
