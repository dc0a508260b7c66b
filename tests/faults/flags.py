"""Gives every flag of every program that takes a number the numbers at the edge of what it takes, and
looks at how the program ends: done, a usage error, out of memory, not finite or nothing trained,
never as a bug of ours, a signal or after a minute.

  tests/faults/flags.py --tools build/tools [--programs plan,evaluate]
"""
import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
MODEL = HERE.parent / 'golden/peft/tiny'
WHOLE = ['0', '-1', '1', '2147483647', '2147483648', '4294967297', '999999999999999999', '9223372036854775808', '']
REAL = WHOLE + ['1e-300', '1e-45', '0.99999999', '1.00000001', '1e38', '1e39', '1e299', 'nan', 'inf', '-0.0']
SIZES = ['0', '1', '-1', '1KB', '50KB', '1MiB', '8000000TiB', '1e18', '9223372036854775807', 'GiB', '1XB']
ALLOWED = {0, 2, 5, 6, 7}
SECONDS = 20  # a run that is merely long is asked to stop, which must work too


def commands(tools, work):
    rows = work / 'rows.jsonl'
    rows.write_text('{"prompt":"abc ","completion":"def ghi"}\n{"prompt":"x","completion":"yz"}\n')
    model = ['--model', str(MODEL)]
    data = ['--data', str(rows)]
    adapter = ['--adapter', str(work / 'adapter')]
    return {
        'plan': ([tools / 'plan', *model], None, {'--seq-len': '64'}),
        'generate': ([tools / 'generate', *model, '--device', 'cpu', '--prompt', 'abc'], None, {'--max-tokens': '3'}),
        'evaluate': ([tools / 'evaluate', *model, *data, '--device', 'cpu'], None, {'--seq-len': '64'}),
        'finetune': ([tools / 'finetune', *model, *data, '--device', 'cpu', '--lr', '0.01'], '--out',
                     {'--steps': '1', '--batch': '2', '--seq-len': '64'}),
        'merge': ([tools / 'merge', *model, *adapter], '--out', {}),
        'export': ([tools / 'export', *model, *adapter], '--out', {}),
    }


def numeric_flags(program):
    text = subprocess.run([program, '--help'], capture_output=True, text=True, check=True).stdout
    flags = dict(re.findall(r'(--[a-z][a-z0-9-]*) [A-Z]+:(INT|NUMBER)\b', text))
    sizes = [f for f in re.findall(r'(--[a-z-]+) TEXT', text) if f in ('--memory', '--memory-limit', '--shard-size')]
    return {**{f: WHOLE if kind == 'INT' else REAL for f, kind in flags.items()}, **{f: SIZES for f in sizes}}


def run_one(command, output, defaults, flag, value):
    folder = pathlib.Path(tempfile.mkdtemp(prefix='lk-flags-'))
    try:
        arguments = [str(a) for a in command]
        if flag in arguments:
            at = arguments.index(flag)
            del arguments[at:at + 2]
        for name, default in defaults.items():
            if name != flag and not (flag == '--epochs' and name == '--steps'):
                arguments += [name, default]
        arguments += [f'{flag}={value}']
        if output:
            name = 'out.gguf' if 'export' in arguments[0] else 'out'
            arguments += [output, str(folder / name)]
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                   env={**os.environ, 'OMP_NUM_THREADS': '1'})
        try:
            _, errors = process.communicate(timeout=SECONDS)
            status = process.returncode
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            try:
                _, errors = process.communicate(timeout=SECONDS)
                status = 0 if process.returncode in (143, -signal.SIGTERM) else process.returncode
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                return 'hangs'
        lines = errors.decode(errors='replace').strip().splitlines()
        return None if status in ALLOWED else f'ends with {status}: {lines[-1] if lines else ""}'
    finally:
        shutil.rmtree(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tools', type=pathlib.Path, required=True)
    parser.add_argument('--programs', default='')
    a = parser.parse_args()
    wrong = tried = 0
    with tempfile.TemporaryDirectory(prefix='lk-flags-') as folder, \
            concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        work = pathlib.Path(folder)
        everything = commands(a.tools.resolve(), work)
        command, output, defaults = everything['finetune']
        subprocess.run([str(c) for c in command] + [output, str(work / 'adapter')] +
                       [part for pair in defaults.items() for part in pair], check=True, capture_output=True)
        for name in a.programs.split(',') if a.programs else everything:
            command, output, defaults = everything[name]
            jobs = {pool.submit(run_one, command, output, defaults, flag, value): (flag, value)
                    for flag, values in numeric_flags(str(command[0])).items() for value in values}
            for job in concurrent.futures.as_completed(jobs):
                tried += 1
                if fault := job.result():
                    wrong += 1
                    flag, value = jobs[job]
                    print(f'{name} {flag}={value} {fault}', flush=True)
    print(f'{tried} runs, {wrong} end wrongly')
    sys.exit(wrong > 0 or tried == 0)


if __name__ == '__main__':
    main()
