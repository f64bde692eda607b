"""The rows of committed shards as a job and a verdict see them: whose word stands, on which side each question lies.

Pure but for reading the artifact store. Rows of all of a job's sets are read together, with what else was said on the
same, so that a correction reaches whatever it corrects: training rows, hold-outs, and rows that were made from others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.events import ShardRef
from schemas.shards import SHARD_SCHEMA, no_rows
from schemas.topics import DAY_MS
from streams.artifacts import ArtifactStore
from streams.prepare.near import PERMUTATIONS, similarities
from streams.prepare.people import MADE_UP
from streams.prepare.questions import FEW
from streams.sorted_copies import COLUMNS, MOST_ASKERS, Sample, open_sample, rows_of
from streams.words import Word, standing

NOTHING = no_rows(pa.schema([SHARD_SCHEMA.field(name) for name in COLUMNS]))
# Answers up to this long are classes.
LONGEST_CLASS = 64
BAND_BYTES = 4
# A class that was given at least so often has ended when it was not given for over a week, though by its share of what
# was said before so many of it were to be expected since.
CLASS_ROWS, ENDED_AFTER_MS, ENDED_EXPECTED = 5, 8 * DAY_MS, 20
_TURN = ("role", "content")


@dataclass(frozen=True)
class Row:
    """One SFT example with what decides about it; of kind `asked` it has no words.

    `messages` is OpenAI's form. `order` is (Unix ms when it was said, partition, offset). `was_right` says whether the
    answer that it corrects was right (None: not said). `new`: no version was trained on its shard. Without being
    `dated` it counts as old, whenever it came. `mute`: only who answered what is known, for it was not opened.
    """

    messages: tuple[dict[str, str], ...]
    completion: str
    split: str
    record_id: str
    order: tuple[int, int, int]
    unit: str = ""
    conversation: str = ""
    question: str = ""
    fact: str = ""
    answer: str = ""
    kind: str = "sft"
    origin: str = "feedback"
    sampled: str = ""
    judges: bool = True
    may_correct: bool = False
    was_right: bool | None = None
    source_record: str = ""
    minhash: bytes = b""
    new: bool = True
    dated: bool = True
    mute: bool = False

    @property
    def said_ms(self) -> int:
        return self.order[0]

    @property
    def made_up(self) -> bool:
        return self.origin in MADE_UP

    @property
    def picked(self) -> bool:
        """Whether somebody chose to say it, of an answer that struck them: most such answers were wrong."""
        return self.origin == "feedback" and self.sampled not in ("random", "all")

    @property
    def class_name(self) -> str:
        """What kind of answer it teaches; "" for a text of its own."""
        text = self.completion.strip()
        return text if len(text) <= LONGEST_CLASS else ""


@dataclass
class Rows:
    """The rows that stand: what people said, answers that they called right, rows without words, what was made up.

    What was called right judges, and is not learned as an example. `contested` are the facts to which more than one
    answer stands. `mute` are rows that stand as well, but were not opened.
    """

    said: list[Row] = field(default_factory=list)
    confirmed: list[Row] = field(default_factory=list)
    asked: list[Row] = field(default_factory=list)
    made: list[Row] = field(default_factory=list)
    mute: list[Row] = field(default_factory=list)
    contested: set[str] = field(default_factory=set)

    def ended(self) -> set[str]:
        """The answers (their hashes) that are classes which nobody was given any more: what people asked for once, or
        what has another name now. Rows that say when they were said judge and teach by them no longer."""
        rows = (*self.said, *self.confirmed, *self.asked, *self.mute)
        given = sorted((row.order, row.answer) for row in rows if row.dated)
        count, last = Counter[str](), dict[str, int]()
        for place, (_, answer) in enumerate(given):
            count[answer] += 1
            last[answer] = place
        return {
            answer for answer, place in last.items()
            if count[answer] >= CLASS_ROWS and given[-1][0][0] - given[place][0][0] > ENDED_AFTER_MS
            and count[answer] / (place + 1) * (len(given) - place - 1) >= ENDED_EXPECTED
        }  # fmt: skip

    def common(self, similarity: float) -> set[str]:
        """Questions that FEW units or more have asked: people will ask them again.

        So is a held question that is as like one of these as `similarity`: two preparing processes may have given one
        question two names.
        """
        units: dict[str, set[str]] = defaultdict(set)
        first: dict[str, Row] = {}
        for row in (*self.said, *self.confirmed, *self.asked, *self.mute):
            units[row.question].add(row.unit)
            first.setdefault(row.question, row)
        common = {question for question, who in units.items() if len(who) >= FEW}
        held = {row.question for row in (*self.said, *self.confirmed) if row.split != "train"} - common
        alike = near_any([first[one] for one in sorted(held)], [first[one] for one in sorted(common)], similarity)
        return common | {one for one, same in zip(sorted(held), alike.tolist(), strict=True) if same}


def near_any(rows: Sequence[Row], others: Sequence[Row], least: float) -> NDArray[np.bool_]:
    """Which rows ask what is at least `least` like what one of the others asks.

    Looked for by 16 bands of 4 bytes: of pairs that are 0.85 alike one in 100,000 shares none (the preparing index, by
    8 bands of 8, misses one in 12), and few others share any, so that the cost does not grow with rows times others.
    """
    found = np.zeros(len(rows), dtype=bool)
    mine = [number for number, row in enumerate(rows) if row.minhash]
    theirs = [row.minhash for row in others if row.minhash]
    if least >= 1 or not mine or not theirs:
        return found
    ours, known = _signatures([rows[number].minhash for number in mine]), _signatures(theirs)
    alike = np.zeros(len(ours), dtype=bool)
    for band in range(ours.shape[1] // BAND_BYTES):
        left = np.flatnonzero(~alike)  # once is enough
        for row, other in _sharing(_band(ours[left], band), _band(known, band)):
            alike[left[row]] |= similarities(ours[left[row]], known[other]) >= least
    found[mine] = alike
    return found


def _band(signatures: NDArray[np.uint8], band: int) -> NDArray[np.uint32]:
    start = band * BAND_BYTES
    return np.ascontiguousarray(signatures[:, start : start + BAND_BYTES]).view(np.uint32).ravel()


def _sharing(
    keys: NDArray[np.uint32], others: NDArray[np.uint32]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of places with equal keys, each place of `keys` at most once in a piece."""
    order = np.argsort(others, kind="stable")
    first = np.searchsorted(others[order], keys, side="left")
    count = np.searchsorted(others[order], keys, side="right") - first
    for step in range(int(count.max(initial=0))):
        rows = np.flatnonzero(count > step)
        yield rows, order[first[rows] + step]


def _signatures(signatures: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(signatures), dtype=np.uint8).reshape(-1, PERMUTATIONS)


def read_rows(
    store: ArtifactStore, new: Iterable[ShardRef], old: Sequence[ShardRef] = (), corrections: str = "anyone",
    sample: Sample | None = None,
) -> Rows:  # fmt: skip
    """The rows of shards that stand, oldest first; of old shards a sample, if one is named. Raises `ArtifactError`."""
    fresh = _read(store, new)
    if sample is None:
        tables = [(fresh, True, False), (_read(store, old), False, False)]
    else:
        opened = open_sample(store, old, sample, fresh)
        tables = [(fresh, True, False), (opened.rows, False, False), (opened.words, False, True)]
    return stand((row_of(row, new, mute) for table, new, mute in tables for row in table.to_pylist()), corrections)


def _read(store: ArtifactStore, shards: Iterable[ShardRef]) -> pa.Table:
    return pa.concat_tables([NOTHING, *(rows_of(store, ref) for ref in shards)])


def stand(rows: Iterable[Row], corrections: str = "anyone") -> Rows:
    """Of all rows that were ever said those whose word stands."""
    read = sorted(rows, key=lambda row: row.order)
    newest = {row.record_id: row for row in read if not row.made_up}
    by_fact: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(newest.values(), key=lambda row: row.order):
        if row.kind != "kto" or row.was_right:  # what was called wrong says nothing of what is right
            by_fact[row.fact].append(row)
    found = Rows()
    answers: dict[str, frozenset[str]] = {}
    for fact, words in by_fact.items():
        answers[fact] = standing((Word(w.answer, w.unit, w.order, w.may_correct) for w in words), corrections)
        if len(answers[fact]) > 1:
            found.contested.add(fact)
        # A unit that says the same again says it once: best as an example.
        words.sort(key=lambda row: (not row.mute, row.kind == "sft", row.order))
        kept = {(row.unit, row.answer): row for row in words if row.answer in answers[fact]}
        for row in kept.values():
            kinds = {"sft": found.said, "kto": found.confirmed, "asked": found.asked}
            (found.mute if row.mute and row.kind != "asked" else kinds[row.kind]).append(row)
    sources = {row.record_id for row in (*found.said, *found.mute) if row.kind == "sft"}
    for row in {row.record_id: row for row in read if row.made_up}.values():
        overruled = row.fact in answers and row.answer not in answers[row.fact]
        if not row.mute and not overruled and (not row.source_record or row.source_record in sources):
            found.made.append(row)
    for some in (found.said, found.confirmed, found.asked, found.made, found.mute):
        some.sort(key=lambda row: row.order)
    return found


def row_of(values: dict[str, Any], new: bool, mute: bool = False) -> Row:
    """A shard's row, as a plain dict, as one that a job or a verdict looks at; of a mute one there is less."""
    made_up = values["origin"] in MADE_UP
    common = {
        "split": values["split"], "record_id": values["record_id"], "unit": "" if made_up else values["unit"],
        "order": (values["submitted_ms"], values["partition"], values["offset"]), "question": values["question"],
        "fact": values["input_hash"], "answer": values["answer_hash"], "kind": values["kind"],
        "origin": values["origin"], "may_correct": bool(values["may_correct"]),
        "source_record": values["source_record"] or "", "was_right": values["label"], "new": new, "mute": mute,
    }  # fmt: skip
    if mute:
        return Row(messages=(), completion="", **common)
    turns = [{name: turn[name] for name in _TURN} for turn in values["messages"] or ()]
    return Row(
        messages=tuple(turns), completion=values["completion"] or "", conversation=values["conversation_id"] or "",
        sampled=values["sampled"] or "", judges=bool(values["judges"]),
        minhash=values["minhash"] or b"", dated=bool(values["dated"]), **common,
    )


@dataclass(frozen=True)
class JudgingRow:
    """A row that judges: how many test units' askers it stands for, and whether its question is a common one."""

    row: Row
    weight: float
    common: bool


def judging_rows(rows: Rows, similarity: float) -> list[JudgingRow]:
    """The rows that judge.

    Contested ones do not, nor what was picked, made up or masked, nor a class that has ended. Of a common question each
    later asker of the test side, as far as MOST_ASKERS, adds to the weight of its rows. `similarity` is what makes two
    questions one (`ModelPolicy`).
    """
    common = rows.common(similarity)
    tested = [row for row in (*rows.said, *rows.confirmed) if row.split == "test" and row.judges]
    gone = rows.ended()
    chosen = [row for row in tested if row.fact not in rows.contested and not (row.dated and row.answer in gone)]
    standing_for = Counter((row.question, row.answer) for row in chosen)
    later = Counter((row.question, row.answer) for row in rows.asked if row.split == "test")
    found = []
    for row in chosen:
        said = row.question, row.answer
        askers = min(MOST_ASKERS, later[said])  # of more not all may have been opened
        found.append(JudgingRow(row, 1 + askers / standing_for[said], row.question in common))
    return found
