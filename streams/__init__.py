"""How it flows: Kafka, the delivery loops, and the consumers of the data plane. Imports `schemas`.

Where a record is safe, and why; each loop says it on top of its file:

- `transact` (prepare, register): artifacts first, under names from their content; then the records and the input
  offsets in one transaction. Until that is committed nobody has seen the records, and the input is read again.
- `sink` (monitor): rows first, each under its topic, partition and offset; then the offsets. A crash in between writes
  the same rows, which collapse. Nothing fences a late writer of ClickHouse: it carries deletions out again.
- `long_job` (work, gate, erase): the result first, under its digest; then its event and the offset in one transaction.
- `join_feedback`: the record first, under an id made of its answer and kind; then the mark that it was made; then the
  offset. A crash in between says the same record again, which replaces itself.

Where a forgotten person stays forgotten: `erase` deletes what stood before the request; what comes after it `prepare`
and `monitor` keep out (`erased`) and delete from the topic it came by, and the join loses it with that deletion. What
cannot be read goes to `dead_letters`, within a budget; `replay` puts it back.
"""
