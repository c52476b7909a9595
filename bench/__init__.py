"""Benchmarks: `python -m bench` prints the tables, `pytest bench --benchmark-only` runs the suites."""
