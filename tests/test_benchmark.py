"""tests/benchmark.py runs to its end, and counts right; no time is judged here."""

import sys

import benchmark
import pytest

import train

SMALL = ["benchmark.py", "--width", "64", "--batch-size", "8", "--rounds", "1"]


@pytest.mark.slow
def test_it_runs_to_its_end_and_counts_the_arithmetic(monkeypatch, capsys):
    monkeypatch.setattr(train, "bf16_in_hardware", lambda device: True)
    monkeypatch.setattr(benchmark, "peak_of", lambda row: 0.0)  # it would start a process for each row
    monkeypatch.setattr(sys, "argv", SMALL)
    benchmark.main()
    printed = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if " | fp32 | " in line or " | bf16 | " in line]
    steps = {"KD", "MetaDistil, second_order", "MetaDistil, jvp", "MetaDistil, jvp, every 8th step"}
    assert {row[1] for row in rows} == {"fp32", "bf16"} and {row[0] for row in rows} >= steps
    times_the_least = {row[0]: float(row[6]) for row in rows if row[1] == "fp32"}
    assert times_the_least["KD"] == times_the_least["MetaDistil, second_order"] == 1
    assert times_the_least["MetaDistil, jvp"] == pytest.approx(20 / 19, abs=2e-3)  # a forward pass more
    assert "\n- jvp, bf16: relative difference" in printed


def test_it_has_no_rows_in_bfloat16_where_that_is_imitated(monkeypatch):
    monkeypatch.setattr(train, "bf16_in_hardware", lambda device: False)
    monkeypatch.setattr(sys, "argv", SMALL)
    assert list(benchmark.Bench(benchmark.flags()).pairs) == ["fp32"]
