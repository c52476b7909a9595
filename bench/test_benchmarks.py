"""The same cases as pytest-benchmark suites: pytest bench --benchmark-only [--bench-device cuda]."""

import pytest
import torch

from .cases import Case
from .run import select
from .settings import Settings


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    device = torch.device(metafunc.config.getoption("--bench-device"))
    settings = Settings(device, tiny=metafunc.config.getoption("--bench-tiny"))
    pairs = [(case, name) for case in select(settings) for name in case.contenders]
    metafunc.parametrize(
        ("case", "contender"), pairs, ids=[f"{case.title}, {name}".replace("/", " by ") for case, name in pairs]
    )


def test_benchmark(benchmark, case: Case, contender: str) -> None:
    benchmark.group = case.title
    built = case.build()
    entrant = built.makers[contender]()
    values = entrant.values(entrant.run())
    error = built.error(values) if values else 0.0
    benchmark.extra_info["error vs float64"] = error
    assert error < 1e-3
    benchmark(entrant.run)
