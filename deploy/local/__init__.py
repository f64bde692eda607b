"""The real servers, started on this machine where no address of one was given.

Reads and writes: one data directory. Knows nothing of topics, tables or models. The CLI asks `supervise`
to run what `kafka`, `clickhouse` and `ray` describe; nothing here prints.
"""
