"""How it flows: Kafka, the three delivery loops, and the consumers of the data plane. Imports `schemas`.

Each loop states on top where a record is safe and why: `transact`, `sink`, `long_job`, and the join in `join_feedback`.
"""
