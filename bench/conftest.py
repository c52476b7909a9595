"""Options of the pytest-benchmark suites."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-device", default="cpu", help="cpu or cuda")
    parser.addoption("--bench-tiny", action="store_true", help="smallest sizes: shows that everything runs")
