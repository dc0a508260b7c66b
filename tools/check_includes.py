#!/usr/bin/env python3
"""Who may include whom: layers include downwards only, and only open_device() knows CUDA.

    tensor <- cpu, cuda         one folder a device; a layer above includes neither
    tensor <- io <- text        bytes from files, and what is made of them
    tensor <- autograd <- nn    the maths: nn sees two small headers of text/, and no file
    io, nn <- modelfile <- lora, methods; lora <- dist <- run <- tools, bench, tests, examples, exercises

And no two headers define types of one name in one namespace, of which the linker would keep one's inline functions.

Prints each offending line as path:line: reason and exits 1. Usage: check_includes.py [ROOT]
"""
import pathlib
import re
import sys

# A folder of src/ and the folders that its files may include.
LAYERS = {
    "tensor": {"tensor"},
    "cpu": {"cpu", "tensor"},
    "cuda": {"cuda", "tensor"},
    "io": {"io", "tensor"},
    "text": {"text", "io", "tensor"},
    "autograd": {"autograd", "tensor"},
    "nn": {"nn", "autograd", "tensor"},
    "modelfile": {"modelfile", "nn", "autograd", "text", "io", "tensor"},
    "lora": {"lora", "modelfile", "nn", "autograd", "text", "io", "tensor"},
    "methods": {"methods", "modelfile", "nn", "autograd", "text", "io", "tensor"},
    "dist": {"dist", "lora", "modelfile", "nn", "autograd", "text", "io", "tensor"},
    "run": {"run", "dist", "lora", "methods", "modelfile", "nn", "autograd", "text", "io", "tensor"},
}
# Single headers that a layer may include from a folder that is closed to it.
EXCEPTIONS = {
    "cuda": {"cpu/cpu_backend.h"},  # open_device() opens the CPU too
    "nn": {"text/row.h", "text/text_stream.h"},  # what a batch is made of, what generated ids become
}
# Programs stand above all layers.
PROGRAMS = {"tools", "bench", "tests", "examples", "exercises"}
# The only header that opens devices, and who may include it.
DOOR = "cuda/open_device.h"
MAY_OPEN_DOOR = {"lora", "run", "cuda"} | PROGRAMS
# A kernel's test and its bench may include cuda/ directly.
MAY_SEE_CUDA = {"cuda", "tests", "bench"}

SUFFIXES = {".h", ".cpp", ".cu", ".cuh", ".inc"}
INCLUDE = re.compile(r'\s*#\s*include\s*([<"])([^>"]+)[>"]')
CUDA_TOOLKIT = re.compile(r"(cuda|cublas|curand|cudnn|cutlass|cute|nvtx|nvToolsExt|cooperative_groups|mma\.h)")


def judge(owner, quote, target, exists):
    """The reason why a file of folder `owner` may not include `target`, or None.

    owner: a key of LAYERS, or one of PROGRAMS. exists(path under src/) says whether it is there.
    """
    if quote == "<":
        if CUDA_TOOLKIT.match(target) and owner not in MAY_SEE_CUDA:
            return f"<{target}>: only src/cuda/ includes the CUDA toolkit"
        if exists(target):
            return f'<{target}>: our own headers are included with "..."'
        return None
    if ".." in target.split("/"):
        beside = re.fullmatch(r"\.\./(\w+)/[\w.]+", target)  # one program's helper, used by another
        if owner in PROGRAMS and beside and beside.group(1) in PROGRAMS:
            return None
        return f'"{target}": write the path from src/, not ".."'
    if "/" not in target:  # next to the file (a test's helper), or a generated header of src/
        if owner in PROGRAMS or exists(target):
            return None
        return f'"{target}": write the path from src/'
    layer = target.split("/")[0]
    if layer not in LAYERS or not (exists(target) or exists(target + ".in")):  # .in: made of it
        return None if owner in PROGRAMS and layer not in LAYERS else f'"{target}": no such header'
    if target == DOOR:
        return None if owner in MAY_OPEN_DOOR else f'"{target}": {owner}/ may not open devices'
    if layer == "cuda":
        return None if owner in MAY_SEE_CUDA else f'"{target}": only {DOOR} may be included'
    if owner in PROGRAMS or layer in LAYERS[owner] or target in EXCEPTIONS.get(owner, ()):
        return None
    return f'"{target}": {owner}/ may include {", ".join(sorted(LAYERS[owner]))} only'


def sources(root):
    """(path, owner) of every source file. A file of src/ outside the known folders has no owner."""
    for path in sorted((root / "src").rglob("*")):
        if path.suffix in SUFFIXES:
            folder = path.relative_to(root / "src").parts[0]
            yield path, folder if folder in LAYERS else None
    for program in sorted(PROGRAMS):
        for path in sorted((root / program).rglob("*")):
            if path.suffix in SUFFIXES:
                yield path, program


NAMESPACE = re.compile(r"namespace ([\w:]+) \{")
TYPE = re.compile(r"(?:struct|class|enum class) (\w+)(?: final)?(?: : [^;]*)?(?: \{|$)")


def types_of(text):
    """(namespace, type) of each type that a header defines outside of others."""
    namespace = ""
    for line in text.splitlines():
        if match := NAMESPACE.match(line):
            namespace = match.group(1)
        elif match := TYPE.match(line):
            yield namespace, match.group(1)


def self_test():
    """The rule must refuse what it is there to refuse."""
    there = {"tensor/backend.h", "io/json.h", "text/tokenizer.h", "text/row.h", "cpu/fast/simd.h", "modelfile/load.h",
             "run/finetune.h", "autograd/tape.h", "nn/adamw.h",
             "lora/trainer.h", "cuda/open_device.h", "cuda/launch.cuh", "version.h"}
    allowed = [("io", '"tensor/backend.h"'), ("text", '"io/json.h"'), ("nn", '"text/row.h"'),
               ("nn", '"autograd/tape.h"'), ("modelfile", '"text/tokenizer.h"'), ("lora", '"modelfile/load.h"'),
               ("run", '"lora/trainer.h"'), ("tests", '"cpu/fast/simd.h"'), ("lora", '"cuda/open_device.h"'), ("lora", '"version.h"'),
               ("cuda", "<cuda_runtime.h>"), ("tests", '"harness.h"'), ("tests", '"cuda/launch.cuh"'),
               ("tools", '"lora/trainer.h"'), ("bench", '"../tools/program.h"'), ("tensor", "<vector>")]
    refused = [("tensor", '"io/json.h"'), ("io", '"text/tokenizer.h"'), ("autograd", '"nn/adamw.h"'),
               ("autograd", '"io/json.h"'), ("nn", '"lora/trainer.h"'), ("nn", '"text/tokenizer.h"'), ("nn", '"modelfile/load.h"'),
               ("lora", '"run/finetune.h"'), ("lora", '"cpu/fast/simd.h"'), ("cpu", '"io/json.h"'), ("cuda", '"autograd/tape.h"'),
               ("nn", '"cuda/open_device.h"'), ("lora", '"cuda/launch.cuh"'),
               ("tools", '"cuda/launch.cuh"'), ("tensor", "<cuda_runtime.h>"),
               ("tensor", '"../io/json.h"'), ("bench", '"../src/io/json.h"'), ("nn", '"adamw.h"'), ("io", '"io/absent.h"'),
               ("nn", "<nn/adamw.h>")]
    for owner, text in allowed + refused:
        quote, target = text[0], text[1:-1]
        reason = judge(owner, quote, target, there.__contains__)
        assert (reason is None) == ((owner, text) in allowed), (owner, text, reason)
    text = "namespace a::b {\nstruct One {\nclass Two final : public One {\nenum class Three : int {\nstruct Four;\n" \
           "class Five::Six {\n  struct Seven {\nstruct Eight<int> {\n"
    assert list(types_of(text)) == [("a::b", name) for name in ("One", "Two", "Three")], list(types_of(text))


def main():
    self_test()
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent)
    generated = {"version.h", "tensor/backend_ops.h"}
    umbrella = {"lorikeet.h"}  # for embedders: includes what it likes, and no layer includes it
    files = includes = 0
    offenders, defined = [], {}
    for path, owner in sources(root):
        files += 1
        name = path.relative_to(root)
        if owner is None:
            if path.name not in generated | umbrella | {p + ".in" for p in generated}:
                offenders.append(f"{name}: src/{name.parts[1]} is in no layer")
            continue
        text = path.read_text(encoding="utf-8")
        if name.parts[0] == "src" and path.suffix in (".h", ".cuh"):
            for namespace, kind in types_of(text):  # two of one name would share their destructor, as the linker sees it
                first = defined.setdefault((namespace, kind), name)
                if first != name:
                    offenders.append(f"{name}: {namespace}::{kind} is another type in {first}")
        for number, line in enumerate(text.splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            includes += 1
            quote, target = match.groups()
            reason = judge(owner, quote, target,
                           lambda t: t in generated or (root / "src" / t).is_file())
            if reason:
                offenders.append(f"{name}:{number}: {reason}")
    print("\n".join(offenders) if offenders else f"{includes} includes in {files} files are in order, and {len(defined)} types have names of their own")
    if files == 0:
        print(f"{root}: no sources here")
    failed = bool(offenders) or files == 0
    print(f"lorikeet-tests: {int(not failed)} passed, {int(failed)} failed, 0 skipped")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
