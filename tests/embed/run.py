#!/usr/bin/env python3
"""The library as an embedder meets it: install, find by pkg-config, build the example, run it.

    run.py --build BUILD_FOLDER --meson MESON

Installs BUILD_FOLDER into a temporary prefix, builds examples/embed/ against nothing but that and
runs it on the tiny model of the tests, and on SmolLM2 where it is there. The loss must fall, the
same run twice must print the same, errors must come back as exceptions with an exit code, and the
library itself must have written nothing.
"""
import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
passed = failed = skipped = 0


def check(name, ok, detail=""):
    global passed, failed
    passed, failed = passed + bool(ok), failed + (not ok)
    if not ok:
        print(f"FAILED: {name}\n{detail}")


def call(*command, **options):
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, errors="replace", **options)


def required(name, done):
    if done.returncode != 0:
        check(name, False, done.stdout + done.stderr)
        finish()
    check(name, True)


def finish():
    print(f"lorikeet-tests: {passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(failed > 0)


def losses(text):
    return [float(x) for x in re.findall(r"^step +\d+  loss ([0-9.]+)$", text, re.MULTILINE)]


def example_runs(embed, model):
    done = call(embed, model)
    check(f"the example ends well on {model}", done.returncode == 0, done.stdout + done.stderr)
    loss = losses(done.stdout)
    check("ten steps, and the loss falls", len(loss) == 10 and loss[-1] < loss[0], done.stdout)
    lines = done.stdout.splitlines()
    check("it generates before and after",
          lines and lines[0].startswith("before: ") and any(l.startswith("after: ") for l in lines), done.stdout)
    check("stdout is the example's own; stderr has the log callback's one line",
          len(done.stderr.splitlines()) == 1 and "parameters in f32 on cpu" in done.stderr, done.stderr)
    return done.stdout


def main():
    global skipped
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--meson", required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        required("install", call(options.meson, "install", "-C", options.build, "--no-rebuild", "--quiet",
                                 "--destdir", folder / "stage"))
        pc = next((folder / "stage").rglob("lorikeet.pc"))
        archive = next((folder / "stage").rglob("liblorikeet.a"))
        check("the archive holds its objects", archive.read_bytes()[:8] == b"!<arch>\n")
        headers = next((folder / "stage").rglob("lorikeet.h")).parent
        own = [str(p) for p in headers.rglob("*.h") if re.search(r'#include "(?!lorikeet/)', p.read_text())]
        check("installed headers name each other from lorikeet/", not own, "\n".join(own))
        check("no header of the CUDA toolkit is asked for",
              not any("<cuda" in p.read_text() for p in headers.rglob("*.h")))

        lines = (ROOT / "examples/embed/embed.cpp").read_text().count("\n")
        check(f"the example is under 80 lines: {lines}", lines < 80)
        environment = {**os.environ, "PKG_CONFIG_PATH": str(pc.parent)}
        if "${pcfiledir}" not in pc.read_text():  # a build folder set up before the file could be moved
            environment["PKG_CONFIG_SYSROOT_DIR"] = str(folder / "stage")
        required("the example's setup", call(options.meson, "setup", folder / "embed", ROOT / "examples/embed",
                                             env=environment))
        old = call("c++", "-std=c++17", "-fsyntax-only", "-I", headers.parent, "-x", "c++", "-",
                   input="#include <lorikeet/lorikeet.h>\n")
        check("an older C++ is told what is missing", "needs C++20" in old.stderr, old.stderr[:2000])
        required("the example's build", call(options.meson, "compile", "-C", folder / "embed"))

        embed = folder / "embed/embed"
        tiny = ROOT / "tests/golden/peft/tiny"
        check("two runs print the same", example_runs(embed, tiny) == example_runs(embed, tiny))
        os.symlink(tiny, folder / "model.gguf")  # the name that the README uses; a folder will do
        (folder / "adapters/mine").mkdir(parents=True)
        readme = call(folder / "embed/readme", cwd=folder)
        check("the README's lines train a step and save an adapter",
              readme.returncode == 0 and (folder / "adapters/mine/adapter_model.safetensors").is_file(),
              readme.stdout + readme.stderr)
        # The tiny model has no chat template, which the error says; SmolLM2 answers below.
        chat = call(folder / "embed/chat", cwd=folder)
        check("a chat with a model that has no template is refused", chat.returncode == 2 and "template" in chat.stderr,
              chat.stdout + chat.stderr)
        own_op = call(folder / "embed/own_op")
        check("the how-to's op is right in F32 and BF16 on every device",
              own_op.returncode == 0 and "the gradient, bf16 on cpu" in own_op.stdout, own_op.stdout + own_op.stderr)
        missing = call(embed, folder / "none.gguf")
        check("a missing model is an exception that names it, exit code 3",
              missing.returncode == 3 and "none.gguf" in missing.stderr and not missing.stdout,
              missing.stdout + missing.stderr)
        models = sorted((ROOT / "models").glob("SmolLM2-135M-Instruct*.gguf"))
        named = os.environ.get("LORIKEET_SMOLLM2")
        if named is not None:
            models = [pathlib.Path(named)] if named else []
        if models:
            example_runs(embed, models[0])
            (folder / "model.gguf").unlink()
            os.symlink(models[0].resolve(), folder / "model.gguf")
            chat = call(folder / "embed/chat", cwd=folder)
            check("the README's chat is answered", chat.returncode == 0 and len(chat.stdout) > 9, chat.stdout + chat.stderr)
            chats = call(folder / "embed/train_chats", cwd=folder)
            check("the README's chats are trained on and the result answers",
                  chats.returncode == 0 and "step 4: loss" in chats.stdout and len(chats.stdout.splitlines()) > 4,
                  chats.stdout + chats.stderr)
        else:
            skipped += 1
    finish()


if __name__ == "__main__":
    main()
