"""tests/benchmark.py and tests/on_paper.py run, and count right; no time is judged here."""

import sys

import benchmark
import on_paper
import pytest

import models
import train


@pytest.fixture(autouse=True)
def smaller(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--width", "64", "--batch-size", "8", "--rounds", "1"])


@pytest.mark.slow
def test_it_runs_to_its_end_and_counts_the_arithmetic(monkeypatch, capsys):
    monkeypatch.setattr(train, "bf16_in_hardware", lambda: True)
    monkeypatch.setattr(benchmark, "peak_of", lambda row: 0.0)  # it would start a process for each row
    benchmark.main()
    printed = capsys.readouterr().out
    for precision in ("fp32", "bf16"):
        rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if f" | {precision} | " in line]
        times_the_least = {row[0]: float(row[6]) for row in rows}
        assert "MetaDistil, jvp, every 8th step" in times_the_least
        assert times_the_least["KD"] == times_the_least["MetaDistil, second_order"] == 1
        assert times_the_least["MetaDistil, jvp"] == pytest.approx(20 / 19, abs=2e-3)  # a forward pass more
    assert "\n- jvp, bf16: relative difference" in printed


@pytest.mark.slow
def test_on_paper_a_step_has_the_arithmetic_that_is_counted_by_hand(monkeypatch):
    """In forward passes of the student, half as deep as its teacher: KD 5, MetaDistil 19, by jvp one more."""
    build = models.build
    monkeypatch.setattr(models, "build", lambda shape, layers, **other: build(shape, layers=layers // 6, **other))
    work, held = {}, {}
    for name, settings in on_paper.STEPS.items():
        held[name], work[name] = on_paper.count(settings, 2)
    assert work["second_order"] / work["KD"] == pytest.approx(19 / 5, rel=2e-3)
    assert work["jvp"] / work["KD"] == pytest.approx(20 / 5, rel=2e-3)
    weights = 4 * sum(theta.numel() for network in on_paper.networks()[0] for theta in network.parameters())
    assert all(weights < bytes < 8 * weights for bytes in held.values())
