"""`erase`: forgets a person, and gives a receipt once nothing of them is left.

`job` takes the requests, `child` does the work: `find` and `keepers` (topics), `shards`, `tables` (ClickHouse),
`compact` (what Kafka still holds on disk).
"""
