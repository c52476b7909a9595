"""Where the original is faster: measuring on two paths in turn."""

import pytest
import torch
from accelerate_cases import plain_network

import ar_fast
from ar_fast.interop import crossover


def test_measuring_takes_turns_and_stops_at_long_calls(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(crossover.time, "perf_counter", lambda: clock[0])
    called = []

    def path(name, seconds):
        def of(rows):
            def call():
                called.append((name, rows))
                clock[0] += seconds * (1 + rows / 100)

            return call

        return of

    found = crossover.measured(path("original", 3e-4), path("ours", 1e-4), torch.device("cpu"))
    assert found.rows == (1, 8, 64, 256, 1024)
    assert found.ratios == pytest.approx((3.0,) * 5)
    of_first = [name for name, rows in called if rows == 1]
    assert of_first[:6] == ["original", "ours"] * 3
    assert found.ours(1) and found.ours(10_000) and not found.never
    called.clear()
    crossover.measured(path("original", 9e-3), path("ours", 1e-3), torch.device("cpu"))
    assert called == [("original", 1), ("ours", 1)] * 3
    # A call that waited once for another program does not decide.
    waits = iter([0.0, 0.02])

    def of_ours(rows):
        call = path("ours", 1e-3)(rows)

        def waiting():
            clock[0] += next(waits, 0.0)
            call()

        return waiting

    found = crossover.measured(path("original", 4e-3), of_ours, torch.device("cpu"))
    assert found.ratios[0] == pytest.approx(4.0) and found.ours(1)
    slow = crossover.measured(path("original", 1e-1), path("ours", 1.0), torch.device("cpu"))
    assert slow.rows == (1,) and slow.never


def test_a_real_measurement_is_short():
    network = ar_fast.accelerate(plain_network(8, 32))
    (part, *_) = ar_fast.acceleration_report(network).parts
    # On a busy machine a larger batch may take too long to be tried.
    assert "B 1 " in part.by and "B 8 " in part.by


def test_a_few_microseconds_are_not_worth_a_choice():
    assert crossover.Crossover((1,), (2.0,), (1e-3,)).ours(1)
    assert crossover.Crossover((1,), (2.0,), (20e-6,)).never
    # Where the choice is made for another batch size, they are.
    found = crossover.Crossover((1, 8, 64), (2.0, 2.0, 2.0), (20e-6, 5e-6, 1e-3))
    assert [found.ours(rows) for rows in (1, 8, 64)] == [True, False, True]
