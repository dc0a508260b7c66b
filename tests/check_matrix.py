"""The matrix of benches without a measurement: its cases, their shares, and the table's order."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "bench"))
import matrix_cases  # noqa: E402
import matrix_table  # noqa: E402

GIB = 2**30


def check_cases():
    for full in (False, True):
        cases, left_out = matrix_cases.generate(140 * GIB, full=full)
        assert len({case.name for case in cases}) == len(cases) and not left_out
        assert {case.model for case in cases} == set(matrix_cases.MODELS)
        for n in (1, 3, 8, 20):
            shares = [matrix_cases.chunk(cases, i, n, 11) for i in range(1, n + 1)]
            assert sum(shares, []) == cases, "every case is in one share, in order"
    few, _ = matrix_cases.generate(140 * GIB, models=["gpt2-124m"])
    assert sum((matrix_cases.chunk(few, i, 2 * len(few), 11) for i in range(1, 2 * len(few) + 1)), []) == few
    small, left_out = matrix_cases.generate(12 * GIB)
    assert left_out and any(case.recompute for case in small)
    assert all(matrix_cases.peer_bytes(case) <= 0.85 * 12 * GIB for case in small)
    assert not any(case.model.startswith("gpt2") and case.seq_len > 1024 for case in small)
    shallow, _ = matrix_cases.generate(140 * GIB, max_layers=8, models=["llama2-7b"])
    assert shallow[0].name.startswith("llama2-7b/8:") and shallow[0].config()["num_hidden_layers"] == 8


def line(name, own, *peers, card="one"):
    def result(seconds):
        return dict(engine="e", error="no memory") if seconds is None else dict(
            engine="e", step_seconds=seconds, tokens_per_second=1 / seconds, device_peak_bytes=GIB)
    return dict(case=name, card=card, dtype="bf16", date="2026-01-01", lorikeet=result(own), peers=[result(p) for p in peers])


def check_table():
    lines = [line("fast", 1.0, 3.0, 2.0), line("slow", 1.0, None, 0.9), line("middle", 1.0, 1.04), line("alone", 1.0, None),
             line("failed", None, 1.0), line("elsewhere", 1.0, 1.5, card="two")]
    text = matrix_table.table(lines, ["huge"])
    rows = [row.split(" | ")[1] for row in text.splitlines() if row.startswith("| ") and "ratio" not in row]
    assert rows == ["slow", "middle", "fast", "elsewhere"], rows
    assert "Worst 0.90 (slow), median 1.04 of 3 cases; 2 under 1.05, 1 under 1.00. 1 failed here, 1 at the peers alone." in text
    assert "failed: failed: no memory" in text and "no peer: alone" in text and "huge" in text


if __name__ == "__main__":
    check_cases()
    check_table()
    print("lorikeet-tests: 2 passed, 0 failed, 0 skipped")
