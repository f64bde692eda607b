"""Benchmarks of the data plane: `python -m tests.bench.streams` (`make bench-streams`)."""
