"""Makes each allocation of each program fail in turn, alone and with all that follow, and then each
thread that it makes. Looks at how the program ends: with exit status 5 and a message, or, where the
allocation was dispensable (libc's own buffers, advice), with its result. It must never abort, crash,
hang, call it another error, or leave half an output.

  tests/faults/allocations.py --tools build/tools --library build/tests/faults/libfailing_malloc.so
                              --thread-library build/tests/faults/libfailing_threads.so
                              [--sample N] [--programs generate,merge] [--threads 2]

--sample N tries about N allocations of each program, spread over all of its life; without it all are
tried, which takes a quarter of an hour.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
MODEL = HERE.parent / 'golden/peft/tiny'
OUT_OF_MEMORY = 5
SECONDS = 60  # no run takes a tenth of it
MOST_THREADS = 6  # with OMP_NUM_THREADS=2 no program makes more


def commands(tools, work, adapter):
    """Name -> (arguments without the output, the flag that names an output or None)."""
    rows = work / 'rows.jsonl'
    rows.write_text('{"prompt":"abc ","completion":"def ghi"}\n{"prompt":"x","completion":"yz"}\n')
    model = ['--model', str(MODEL)]
    return {
        'plan': ([tools / 'plan', *model, '--seq-len', '64'], None, ''),
        'generate': ([tools / 'generate', *model, '--device', 'cpu', '--prompt', 'abc', '--max-tokens', '3'], None, ''),
        'evaluate': ([tools / 'evaluate', *model, '--device', 'cpu', '--data', rows, '--seq-len', '64'], None, ''),
        'finetune': ([tools / 'finetune', *model, '--device', 'cpu', '--data', rows, '--steps', '1', '--batch', '2',
                      '--seq-len', '64'], '--out', 'run'),
        'merge': ([tools / 'merge', *model, '--adapter', adapter], '--out', 'merged'),
        'export': ([tools / 'export', *model, '--adapter', adapter], '--out', 'adapter.gguf'),
    }


def environment(library, threads, **settings):
    return {**os.environ, 'LD_PRELOAD': str(library), 'OMP_NUM_THREADS': str(threads), 'OMP_WAIT_POLICY': 'passive', **settings}


def whole(path):
    """Whether an output that was published can be used: a program reads it."""
    if path.is_file():
        return path.stat().st_size > 0
    adapter = path / 'adapter_model.safetensors'
    config = path / 'adapter_config.json'
    if adapter.exists() != config.exists():
        return not config.exists()  # weights come first; without a config they are no adapter
    for file in path.glob('*.json'):
        json.loads(file.read_text())
    return True


def run_one(command, output_flag, output_name, library, threads, at, on):
    """None, or what is wrong with the way the program ended."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix='lk-faults-'))
    try:
        settings = {'LK_FAIL_AT': str(at)}
        if on:
            settings['LK_FAIL_ON'] = '1'
        arguments = [str(a) for a in command]
        if output_flag:
            arguments += [output_flag, str(folder / output_name)]
        try:
            done = subprocess.run(arguments, env=environment(library, threads, **settings), capture_output=True,
                                  timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return 'hangs'
        message = done.stderr.decode(errors='replace').strip().splitlines()
        last = message[-1] if message else ''
        if done.returncode not in (0, OUT_OF_MEMORY):
            return f'ends with {done.returncode}: {last}'
        if done.returncode == OUT_OF_MEMORY and not last:
            return 'ends with 5 and no message'
        if output_flag and (folder / output_name).exists() and not whole(folder / output_name):
            return f'leaves {sorted(p.name for p in (folder / output_name).iterdir())}'
        return None
    finally:
        shutil.rmtree(folder)


def count_allocations(command, output_flag, output_name, library, threads):
    with tempfile.TemporaryDirectory(prefix='lk-faults-') as folder:
        count = pathlib.Path(folder) / 'count'
        arguments = [str(a) for a in command]
        if output_flag:
            arguments += [output_flag, str(pathlib.Path(folder) / output_name)]
        done = subprocess.run(arguments, env=environment(library, threads, LK_FAIL_COUNT=str(count)), capture_output=True)
        if done.returncode != 0:
            sys.exit(f'{arguments[0]} fails by itself: {done.stderr.decode()}')
        return int(count.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tools', type=pathlib.Path, required=True)
    parser.add_argument('--library', type=pathlib.Path, required=True)
    parser.add_argument('--thread-library', type=pathlib.Path, required=True)
    parser.add_argument('--sample', type=int, default=0)
    parser.add_argument('--programs', default='')
    parser.add_argument('--threads', type=int, default=2)
    a = parser.parse_args()
    library, tools = a.library.resolve(), a.tools.resolve()
    wrong = tried = 0
    with tempfile.TemporaryDirectory(prefix='lk-faults-') as folder, \
            concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        work = pathlib.Path(folder)
        adapter = work / 'adapter'
        everything = commands(tools, work, adapter)
        subprocess.run([str(c) for c in everything['finetune'][0]] + ['--out', str(adapter), '--lr', '0.01'], check=True,
                       capture_output=True)
        names = a.programs.split(',') if a.programs else list(everything)
        for name in names:
            command = everything[name]
            count = count_allocations(*command, library, a.threads)
            step = max(1, count // a.sample) if a.sample else 1
            jobs = {}
            for at in range(1, count + 1, step):
                for on in (False, True):
                    jobs[pool.submit(run_one, *command, library, a.threads, at, on)] = (at, on)
            for at in range(1, MOST_THREADS + 1):
                jobs[pool.submit(run_one, *command, a.thread_library.resolve(), a.threads, at, True)] = (f'thread {at}', True)
            bad = {}
            for job in concurrent.futures.as_completed(jobs):
                if fault := job.result():
                    bad[jobs[job]] = fault
            for (at, on), fault in sorted(bad.items(), key=str)[:20]:
                what = at if isinstance(at, str) else f'allocation {at}'
                print(f'{name}: {what}{" and all after it" if on else ""} fails: {fault}')
            print(f'{name}: {count} allocations, {len(jobs)} runs, {len(bad)} end wrongly', flush=True)
            wrong += len(bad)
            tried += len(jobs)
    print(f'lorikeet-tests: {int(wrong == 0)} passed, {int(wrong > 0)} failed, 0 skipped')
    sys.exit(wrong > 0 or tried == 0)


if __name__ == '__main__':
    main()
