"""The part of bench/scaling.py that needs no GPU, on a tiny model: check_scaling.py FINETUNE"""

import json
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent


def main(finetune):
    build = pathlib.Path(finetune).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        results = pathlib.Path(folder) / "results.jsonl"
        done = subprocess.run(
            [sys.executable, HERE.parent / "bench/scaling.py", "--build", build, "--device", "cpu", "--processes", "3", "--parts",
             "bytes,kill,memory", "--results", results], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"check_scaling: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        found = {line["part"]: line["ok"] for line in map(json.loads, results.read_text().splitlines())}
    assert found["bytes"] is True and found["kill"] in (True, None) and found["memory"] is None, found
    assert "| bytes |" in done.stdout.splitlines()[-3], done.stdout
    print("lorikeet-tests: 1 passed, 0 failed, 0 skipped")


if __name__ == "__main__":
    main(sys.argv[1])
