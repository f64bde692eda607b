"""The fault machine: real broker, real ClickHouse, real consumer processes, faults drawn by seed, and an oracle.

`python -m tests.faults` is the long run; `tests/integration/test_faults*.py` drive the same machine for seconds.
"""
