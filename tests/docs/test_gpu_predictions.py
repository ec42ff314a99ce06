"""Each prediction stands beside the row of the benchmark that measures it, and next to nothing else."""

import gpu_bench
import gpu_model

from tools.docs import gpu


def result(rows: list[dict]) -> dict:
    return {"date": "2026-12-24", "card": "NVIDIA H200", "command": "python gpu.py", "versions": {"torch": "2"}} | {
        "parts": {"b": {"rows": rows[::2]}, "c": {"rows": rows[1::2]}}
    }


def test_every_figure_is_found_in_its_own_row():
    rows = [dict(p.row) | {p.figure: (number + 1) * p.unit.size} for number, p in enumerate(gpu.PREDICTIONS)]
    lines = gpu.predictions_table(result(rows)).splitlines()[2:]
    shown = [line.split(" | ")[-1].split()[0] for line in lines]
    assert [float(number) for number in shown] == list(range(1, len(gpu.PREDICTIONS) + 1))


def test_what_was_not_measured_says_so():
    lines = gpu.predictions_table(None).splitlines()[2:]
    assert len(lines) == len(gpu.PREDICTIONS) and all(line.endswith("not run |") for line in lines)
    assert "Nothing here was measured" in gpu.measured_on(None)
    assert "2026-12-24 on NVIDIA H200" in gpu.measured_on(result([]))


def test_predictions_are_of_sizes_that_the_benchmark_measures():
    for prediction in gpu.PREDICTIONS:
        row = prediction.row
        if row["what"].startswith("moe"):
            assert row["tokens"] in gpu_bench.FULL.tokens
        assert row.get("rows", 1) in gpu_model.FULL.rows
        assert row.get("context", gpu_model.FULL.context) == gpu_model.FULL.context


def test_no_expectation_beats_the_full_rate():
    for prediction in gpu.PREDICTIONS:
        for place, span in enumerate((prediction.h100, prediction.h200)):
            if span is not None and prediction.least is not None:
                assert prediction.least[place] <= span[0] <= span[1], prediction
