"""What holds a person's words or id, and how it is forgotten. A test fills each and searches it by bytes afterwards.

Whose a record is stands in its `subject_id`; who else speaks in it, in the fields of PERSON_FIELDS.
"""

from __future__ import annotations

from dataclasses import dataclass

# Fields that hold the id of a person, besides the answer's id, which leads to one.
PERSON_FIELDS = ("subject_id", "author", "requested_by", "actor")
# Events on personal topics that name nobody: a receipt holds a keyed hash.
NAMELESS = ("ErasureCompleted",)


@dataclass(frozen=True)
class Store:
    """One place with people's words or ids: what it holds, and how an erasure takes them out."""

    name: str
    holds: str
    erased: str


STORES: tuple[Store, ...] = (
    Store("personal topics", "what people said and were told", "a deletion under each key, then compaction"),
    Store("topics of stream processors", "the same on its way, and what waits", "a deletion under each key"),
    Store("dead letters", "records that could not be read", "a deletion under each key, then compaction"),
    Store("shards", "rows with words, and `asked` rows with a unit", "rewritten without the rows"),
    Store("gathered", "hashes of rows", "stored again without the rows' shards"),
    Store("sorted", "rows of shards, sorted for jobs to open", "every run deleted that holds one of the rows' shards"),
    Store("row files of jobs and verdicts", "places of rows, no words or ids", "what stood there is gone"),
    Store("landing tables", "events as they came", "rows deleted, old parts waited for"),
    Store("disk tables", "answers and feedback of `join-feedback`", "deleted with the topics' deletions"),
    Store("logs", "an id that an error quotes", "overwritten in place"),
    Store("adapters", "what a model learned", "listed in the receipt, versions marked, refused ones deleted"),
)
