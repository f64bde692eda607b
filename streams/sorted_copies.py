"""Sorted copies of a model's old rows, so that a job opens what it uses, however much is stored.

Shards stay what versions and lineage name; a copy is made from them, and can be at any time. A run stands for the
shards it was made from. Its rows lie in chunks: Parquet files of one month and one side (hold-outs apart), sorted by
question, so that a part of all questions is a few chunks. Beside them it has one file of words: who answered what to
which question when, but no text. That is what decides whose word stands and how common a question is, and is looked
through for the rows that a job has opened.

Runs are merged as in a log-structured tree, up to RUN_ROWS. What was not sorted yet is opened shard by shard. A run is
believed by its proof (`ArtifactStore.put_proven`), its files by the digests in it. Erasing somebody deletes every run
that holds a shard in a form which no longer stands: the next job sorts anew.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.events import FileRef, ShardRef
from schemas.shards import SHARD_SCHEMA, latest, no_rows, read_table, short_hashes
from streams.artifacts import ArtifactError, ArtifactStore, get_shard

log = logging.getLogger(__name__)
FOLDER = "sorted"
CHUNK_ROWS, RUN_ROWS, WORDS_AT_ONCE = 1_000, 250_000, 50_000
# Fewer shards than this are opened one by one.
WORTH_SORTING = 64
# Of the words on one thing that was asked the newest so many are heard, and so many askers of a common question.
MOST_WORDS, MOST_ASKERS = 500, 100
MOST_STEPS = 4
COLUMNS = [
    "record_id", "unit", "conversation_id", "kind", "split", "messages", "completion", "label", "origin", "sampled",
    "may_correct", "source_record", "judges", "question", "input_hash", "answer_hash", "minhash", "partition", "offset",
    "submitted_ms", "dated",
]  # fmt: skip
WORDS = [
    "record_id", "unit", "kind", "split", "label", "origin", "may_correct", "source_record", "question", "input_hash",
    "answer_hash", "partition", "offset", "submitted_ms",
]  # fmt: skip
HASHES = ("question", "input_hash", "answer_hash")
_NAMES = ("kind", "split", "origin")
RECORD = "record"  # the hash of the record's id
SHARD = "shard"  # the column that says which of the run's shards a row is of
_NUMBER = pa.field(SHARD, pa.int32())
_ALL = pa.schema([*(SHARD_SCHEMA.field(name) for name in COLUMNS), _NUMBER])
_WORDS = pa.schema([*(SHARD_SCHEMA.field(name) for name in WORDS), _NUMBER])
_NO_ROWS = no_rows(pa.schema([SHARD_SCHEMA.field(name) for name in COLUMNS]))
_NO_WORDS = _NO_ROWS.select(WORDS)
# What is looked for in all words is looked for by so many bits first.
BITS = 20
_SHIFT = np.uint64(64 - BITS)
_BEHIND_ALL = "g"  # what is sorted by are hex digits


class Chunk(msgspec.Struct, frozen=True):
    """A file of rows, the first and the last question in it, and whether they are held out."""

    path: str
    digest: str
    held: bool
    first: str
    last: str
    rows: int


class Run(msgspec.Struct, frozen=True):
    """The shards that a run stands for, by the digests of the form they had, and its files.

    `teach` and `judge` are how many rows of each of them can.
    `moved` are the records that older runs hold in another form; within a run each is there in its newest.
    """

    shards: list[str]
    teach: list[int]
    judge: list[int]
    rows: int
    moved: list[str]
    chunks: list[Chunk]
    words: FileRef

    @property
    def files(self) -> set[str]:
        return {self.words.path, *(chunk.path for chunk in self.chunks)}


@dataclass(frozen=True)
class Sample:
    """Which old rows of `model` are wanted: about `train` rows that teach, of questions from `start` on (a share of all
    questions, 0 to 1), and about `held` of the hold-outs, of the first questions."""

    model: str
    train: int
    held: int
    start: float = 0.0


@dataclass(frozen=True)
class Opened:
    """The rows of a sample, and what else was said on what they and the new rows are about (without text)."""

    rows: pa.Table
    words: pa.Table


Bounds = list[tuple[str, str]]  # of questions, the upper one not included


def rows_of(store: ArtifactStore, ref: ShardRef) -> pa.Table:
    """The rows of a shard that a job or a verdict looks at, with COLUMNS and short hashes: examples, answers that were
    called right or wrong, askers without words. Raises `ArtifactError`."""
    table = read_table(io.BytesIO(get_shard(store, ref)[1]), COLUMNS)
    return short_hashes(table.filter(pc.is_in(table["kind"], pa.array(["sft", "asked", "kto"]))), HASHES)


def open_sample(
    store: ArtifactStore, shards: Sequence[ShardRef], sample: Sample, new: pa.Table
) -> Opened:
    """What a job that learns from `new` (columns COLUMNS) needs of these older shards. Raises `ArtifactError`."""
    while True:
        runs, _, loose = _usable(store, sample.model, shards)
        try:
            return _Opener(store, shards, sample, runs, loose).opened(new)
        except ArtifactError as error:
            _give_up_broken(store, runs, error)


class _Opener:
    """One look at a model's older shards."""

    def __init__(
        self, store: ArtifactStore, shards: Sequence[ShardRef], sample: Sample, runs: list[tuple[str, Run]],
        loose: Sequence[ShardRef],
    ) -> None:  # fmt: skip
        self._store, self._runs = store, [run for _, run in runs]
        self._wanted = {ref.digest for ref in shards}
        self._loose = [rows_of(store, ref) for ref in loose]
        teach = judge = 0
        for run in self._runs:
            for digest, teaching, judging in zip(run.shards, run.teach, run.judge, strict=True):
                if digest in self._wanted:
                    teach, judge = teach + teaching, judge + judging
        for table in self._loose:
            teaching_here, judging_here = (int(which.sum()) for which in _useful(table))
            teach, judge = teach + teaching_here, judge + judging_here
        taught = _behind(sample.start, sample.train / max(1, teach)) if sample.train else []
        self._bounds = {False: taught, True: [("", _bound(sample.held / max(1, judge))), *taught]}

    def opened(self, new: pa.Table) -> Opened:
        rows = pa.concat_tables([_NO_ROWS, *self._rows()])
        given = pa.concat_tables([new.select(WORDS), rows.select(WORDS)])
        heard, questions = given, _values(given, "question")
        facts, names = _values(given, "input_hash"), _values(given, "record_id") | _values(given, "source_record")
        asked: set[str] = set()
        moved = {record for run in self._runs for record in run.moved}.union(
            *(_values(table, "record_id") for table in (*self._loose, given))
        )
        # Who said the same may say otherwise since, and what something was made from may be overruled: one thing leads
        # to another, but seldom far.
        for _ in range(MOST_STEPS):
            found = self._words(facts, questions, names)
            asked |= facts | names
            heard = pa.concat_tables([heard, _distinct(found, heard)])
            sources = heard.filter(pc.is_in(heard["record_id"], _array(_values(heard, "source_record"))))
            facts, questions = _values(sources, "input_hash") - asked, set()
            names = (_values(found, "record_id") & moved) - asked
            if not facts and not names:
                break
        return Opened(rows, heard.slice(given.num_rows))

    def _rows(self) -> Iterator[pa.Table]:
        for side, bounds in self._bounds.items():
            for run in self._runs:
                for chunk in run.chunks:
                    if chunk.held == side and any(low <= chunk.last and chunk.first < high for low, high in bounds):
                        yield _within(self._of_wanted(run, _parquet(self._store, chunk)), bounds)
            for table in self._loose:
                yield _within(_with_text(_side(table, side)), bounds)

    def _of_wanted(self, run: Run, table: pa.Table) -> pa.Table:
        """Without rows of shards that are not asked for: they may be new again, or stand otherwise."""
        wanted = np.array([digest in self._wanted for digest in run.shards], dtype=bool)
        table = table if wanted.all() else table.filter(pa.array(wanted[table[SHARD].to_numpy()]))
        return table.drop_columns(SHARD)

    def _words(self, facts: set[str], questions: set[str], names: set[str]) -> pa.Table:
        """What was said on these facts and questions, and by these records; of much of it the newest."""
        table = pa.concat_tables([_NO_WORDS, *map(_plain, self._spoken(facts, questions, names))])
        same = pc.or_(
            pc.is_in(table["input_hash"], _array(facts)), pc.is_in(table["record_id"], _array(names))
        )
        others = pc.and_(pc.invert(same), pc.is_in(table["question"], _array(questions)))
        said, others = table.filter(same), table.filter(others)
        return pa.concat_tables([_newest(said, "input_hash", MOST_WORDS), _newest(others, "question", MOST_ASKERS)])

    def _spoken(self, facts: set[str], questions: set[str], names: set[str]) -> Iterator[pa.Table]:
        """All words on these, and some others: most are passed over by a few bits of their hashes."""
        maybe = {
            "input_hash": _some_bits(int(value, 16) for value in facts),
            "question": _some_bits(int(value, 16) for value in questions),
            RECORD: _some_bits(map(_record_hash, names)),
        }
        for run in self._runs:
            for batch in _words_of(self._store, run):
                found = np.zeros(batch.num_rows, dtype=bool)
                for name, bits in maybe.items():
                    found |= bits[batch[name].to_numpy() >> _SHIFT]
                yield self._of_wanted(run, batch.filter(pa.array(found)).drop_columns(RECORD))
        for table in self._loose:
            yield table.select(WORDS)


def sort(store: ArtifactStore, model: str, shards: Sequence[ShardRef]) -> None:
    """Sort what is not sorted yet of these shards, if that is worth it. Raises `ArtifactError`, and OSError where there
    is no room: whoever reads on opens shard by shard what is not sorted."""
    if not store.proves:  # nothing here could be believed
        return
    left = True
    while left:
        runs, taken_up, loose = _usable(store, model, shards)
        for path, run in taken_up:  # a crash left it beside the run that has its shards
            _delete(store, path, run)
        try:
            left = len(loose) >= WORTH_SORTING and _sort_some(store, model, runs, loose)
        except ArtifactError as error:
            _give_up_broken(store, runs, error)


def _sort_some(
    store: ArtifactStore, model: str, runs: list[tuple[str, Run]], loose: Sequence[ShardRef]
) -> bool:
    """One run of some of these shards, with the smaller runs; False where somebody was forgotten meanwhile."""
    taken: list[ShardRef] = []
    tables, rows = [], 0
    for ref in loose:
        if rows + ref.rows > RUN_ROWS and taken:
            break
        taken.append(ref)
        tables.append(rows_of(store, ref))
        rows += ref.rows
    merged = []
    for path, run in reversed(runs):  # the smallest first
        if run.rows >= 2 * rows or rows + run.rows > RUN_ROWS:
            break
        merged.append((path, run))
        rows += run.rows
    kept = _put(store, model, taken, tables, merged)
    for path, run in merged if kept else ():
        _delete(store, path, run)
    return kept


def _give_up_broken(store: ArtifactStore, runs: list[tuple[str, Run]], error: ArtifactError) -> None:
    """Delete the runs whose files are not what they were. Raises `error` where all are."""
    broken = [path for path, run in runs if not _is_whole(store, run)]
    if not broken:
        raise error
    log.warning("%s; %d runs are given up", error, len(broken))
    for path in broken:
        store.delete(path)


def forget(store: ArtifactStore, standing: set[str]) -> None:
    """Delete every run that holds a shard in another form than these, by digest, and every file of no run."""
    kept: set[str] = set()
    for path, _ in store.files(FOLDER):
        run = _opened(store, path)
        if run is not None and standing.issuperset(run.shards):
            kept |= {path, *run.files}
    for path, _ in store.files(FOLDER):
        if path not in kept:
            store.delete(path)


def _usable(
    store: ArtifactStore, model: str, shards: Sequence[ShardRef]
) -> tuple[list[tuple[str, Run]], list[tuple[str, Run]], list[ShardRef]]:
    """Runs, the largest first and no shard in two of them; runs whose shards are in these; the shards in no run."""
    runs, taken_up, covered = [], [], set[str]()
    for path, run in sorted(_runs(store, model), key=lambda one: -len(one[1].shards)):
        if covered.isdisjoint(run.shards):
            runs.append((path, run))
            covered.update(run.shards)
        else:
            taken_up.append((path, run))
    return runs, taken_up, [ref for ref in shards if ref.digest not in covered]


def _runs(store: ArtifactStore, model: str) -> Iterator[tuple[str, Run]]:
    if store.proves:
        for path, _ in store.files(f"{FOLDER}/{model}"):
            if (run := _opened(store, path)) is not None:
                yield path, run


def _opened(store: ArtifactStore, path: str) -> Run | None:
    """The run at a path; None for its files, and for what no process of this loop wrote."""
    if not path.endswith(".json"):
        return None
    try:
        return msgspec.json.decode(store.read_proven(path), type=Run)
    except (ArtifactError, msgspec.DecodeError):
        return None


def _is_whole(store: ArtifactStore, run: Run) -> bool:
    try:
        for path, digest in ((run.words.path, run.words.digest), *((one.path, one.digest) for one in run.chunks)):
            store.get_bytes(path, digest)
    except ArtifactError:
        return False
    return True


def _put(
    store: ArtifactStore, model: str, refs: Sequence[ShardRef], tables: Sequence[pa.Table],
    merged: Sequence[tuple[str, Run]],
) -> bool:  # fmt: skip
    """Store one run for these shards and runs; False where somebody was forgotten meanwhile, and nothing is kept."""
    shards, pieces = [ref.digest for ref in refs], []
    for number, table in enumerate(tables):
        pieces.append(table.append_column(_NUMBER, pa.array(np.full(table.num_rows, number, dtype=np.int32))))
    for _, run in merged:
        for table in (*(_parquet(store, chunk) for chunk in run.chunks), *_askers(store, run)):
            numbers = pc.cast(pc.add(table[SHARD], len(shards)), pa.int32())
            pieces.append(table.set_column(table.schema.get_field_index(SHARD), _NUMBER, numbers))
        shards += run.shards
    table = latest(pa.concat_tables([no_rows(_ALL), *pieces]), "record_id")
    moved = _in_others(store, model, table["record_id"], {path for path, _ in merged})
    teach, judge = (_by_shard(table, which, len(shards)) for which in _useful(table))
    chunks, words = list(_chunks(store, model, table)), _put_words(store, model, table)
    run = Run(shards, teach, judge, table.num_rows, moved, chunks, words)
    data = msgspec.json.encode(run)
    path = f"{FOLDER}/{model}/{hashlib.sha256(data).hexdigest()}.json"
    store.put_proven(path, data)
    log.info("%s: %d rows of %d shards are sorted", model, run.rows, len(shards))
    # An erasure deletes what it finds; what was written behind its back, or under it, is not kept.
    there = {name for name, _ in store.files(f"{FOLDER}/{model}")}
    written = {path, *run.files, *(name for name, _ in merged)}
    if all(get_shard(store, ref)[0] == ref for ref in refs) and there >= written:
        return True
    _delete(store, path, run)
    return False


def _useful(table: pa.Table) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows can teach, and which can judge."""
    train, sft = pc.equal(table["split"], "train"), pc.equal(table["kind"], "sft")
    judging = pc.and_(pc.equal(table["split"], "test"), pc.fill_null(table["judges"], False))
    right = pc.and_(pc.equal(table["kind"], "kto"), pc.fill_null(table["label"], False))
    both = pc.and_(train, sft), pc.and_(judging, pc.or_(sft, right))
    teach, judge = (found.to_numpy() for found in both)
    return teach, judge


def _by_shard(table: pa.Table, which: NDArray[np.bool_], shards: int) -> list[int]:
    return np.bincount(table[SHARD].to_numpy()[which], minlength=shards).tolist()  # type: ignore[no-any-return]


def _in_others(store: ArtifactStore, model: str, records: pa.ChunkedArray, merged: set[str]) -> list[str]:
    """Which of these records runs but those hold too."""
    found: set[str] = set()
    for path, run in _runs(store, model):
        if path not in merged:
            for batch in _words_of(store, run):
                found.update(records.filter(pc.is_in(records, batch["record_id"])).to_pylist())
    return sorted(found)


def _chunks(store: ArtifactStore, model: str, table: pa.Table) -> Iterator[Chunk]:
    table = _with_text(table)
    said = pc.strftime(pc.cast(table["submitted_ms"], pa.timestamp("ms")), format="%Y-%m")
    said = pc.if_else(pc.match_substring_regex(said, "^[0-9]{4}-[0-9]{2}$"), said, "other")
    table = table.append_column("month", said).append_column("held", pc.not_equal(table["split"], "train"))
    table = table.sort_by([(name, "ascending") for name in ("held", "month", "question", "input_hash")])
    held, month = table["held"].to_numpy(zero_copy_only=False), table["month"].to_numpy(zero_copy_only=False)
    cuts = np.flatnonzero((held[1:] != held[:-1]) | (month[1:] != month[:-1])) + 1
    for begin, end in zip([0, *cuts.tolist()], [*cuts.tolist(), table.num_rows], strict=True):
        for start in range(begin, end, CHUNK_ROWS):
            piece = table.slice(start, min(CHUNK_ROWS, end - start)).drop_columns(["month", "held"])
            side = "held" if held[start] else "train"
            sink = io.BytesIO()
            pq.write_table(piece, sink, compression="zstd")
            data = sink.getvalue()
            path = f"{FOLDER}/{model}/{month[start]}/{side}-{hashlib.sha256(data).hexdigest()}.parquet"
            questions = piece["question"]
            yield Chunk(
                path, store.put_bytes(path, data), bool(held[start]), questions[0].as_py(), questions[-1].as_py(),
                piece.num_rows,
            )  # fmt: skip


def _put_words(store: ArtifactStore, model: str, table: pa.Table) -> FileRef:
    """The words in few bytes, for all of them are looked through: hashes as numbers, names by their number."""
    words = table.select(_WORDS.names).combine_chunks()
    for place, field in enumerate(_WORDS):
        if field.name in HASHES:
            numbers = np.array([int(value or "0", 16) for value in words[field.name].to_pylist()], dtype=np.uint64)
            words = words.set_column(place, field.name, pa.array(numbers))
        elif field.name in _NAMES:
            words = words.set_column(place, field.name, words[field.name].dictionary_encode())
    records = np.fromiter(map(_record_hash, words["record_id"].to_pylist()), np.uint64, words.num_rows)
    words = words.append_column(RECORD, pa.array(records))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, words.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(words, max_chunksize=WORDS_AT_ONCE)
    data = sink.getvalue().to_pybytes()
    path = f"{FOLDER}/{model}/words-{hashlib.sha256(data).hexdigest()}.arrow"
    return FileRef(path=path, digest=store.put_bytes(path, data), rows=words.num_rows)


def _words_of(store: ArtifactStore, run: Run) -> Iterator[pa.Table]:
    file = pa.ipc.open_file(pa.BufferReader(store.get_bytes(run.words.path, run.words.digest)))
    for number in range(file.num_record_batches):
        yield pa.Table.from_batches([file.get_batch(number)])


def _askers(store: ArtifactStore, run: Run) -> Iterator[pa.Table]:
    """A run's rows that have no text, as shards have them."""
    for batch in _words_of(store, run):
        table = _plain(batch.filter(pc.equal(batch["kind"], "asked")))
        empty = (pa.nulls(table.num_rows, field.type) for field in _ALL)
        arrays = [
            table[field.name] if field.name in table.column_names else nothing
            for field, nothing in zip(_ALL, empty, strict=True)
        ]
        yield pa.Table.from_arrays(arrays, schema=_ALL)


def _record_hash(record: str) -> int:
    return int.from_bytes(hashlib.blake2b(record.encode(), digest_size=8).digest(), "big")


def _some_bits(hashes: Iterable[int]) -> NDArray[np.bool_]:
    """By the first bits of a hash, whether any of these begins so."""
    found = np.zeros(1 << BITS, dtype=bool)
    found[np.fromiter(hashes, np.uint64) >> _SHIFT] = True
    return found


def _plain(table: pa.Table) -> pa.Table:
    """As shards have it."""
    for place, field in enumerate(_NO_WORDS.schema):
        column = table[field.name]
        if column.type == pa.uint64():
            values = [f"{value:016x}" for value in column.to_pylist()]
            table = table.set_column(place, field, pa.array(values, field.type))
        elif column.type != field.type:
            table = table.set_column(place, field, column.cast(field.type))
    return table


def _delete(store: ArtifactStore, path: str, run: Run) -> None:
    for name in (path, *run.files):  # the run first: whoever finds it finds its files
        store.delete(name)


def _parquet(store: ArtifactStore, chunk: Chunk) -> pa.Table:
    file = pq.ParquetFile(pa.BufferReader(store.get_bytes(chunk.path, chunk.digest)))
    return file.read(use_threads=False).cast(_ALL)


def _side(table: pa.Table, held: bool) -> pa.Table:
    compare = pc.not_equal if held else pc.equal
    return table.filter(compare(table["split"], "train"))


def _with_text(table: pa.Table) -> pa.Table:
    """Without the later askers of common questions: they are words alone."""
    return table.filter(pc.not_equal(table["kind"], "asked"))


def _within(table: pa.Table, bounds: Bounds) -> pa.Table:
    inside = np.zeros(table.num_rows, dtype=bool)
    for low, high in bounds:
        inside |= pc.and_(
            pc.greater_equal(table["question"], low), pc.less(table["question"], high)
        ).to_numpy(zero_copy_only=False)  # fmt: skip
    return table.filter(pa.array(inside))


def _bound(share: float) -> str:
    """The question behind the first `share` of all: they are hashes."""
    return _BEHIND_ALL if share >= 1 else f"{int(max(0.0, share) * 2**64):016x}"


def _behind(start: float, share: float) -> Bounds:
    """The questions of a share of all from `start` on, and from the first on where that leads over the last."""
    if share >= 1:
        return [("", _BEHIND_ALL)]
    end = start + share
    return [(_bound(start), _bound(end)), *([("", _bound(end - 1))] if end > 1 else [])]


def _values(table: pa.Table, name: str) -> set[str]:
    return set(table[name].unique().to_pylist()) - {"", None}


def _array(values: set[str]) -> pa.Array:
    return pa.array(values, pa.string())


def _newest(table: pa.Table, by: str, most: int) -> pa.Table:
    """Of the rows with the same `by` the newest `most`."""
    if table.num_rows <= most:
        return table
    codes = table[by].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    order = np.lexsort((-table["submitted_ms"].to_numpy(), codes))
    begins = np.concatenate([[True], np.diff(codes[order]) != 0])
    starts = np.flatnonzero(begins)
    rank = np.arange(len(order)) - starts[np.cumsum(begins) - 1]
    return table.take(pa.array(np.sort(order[rank < most])))


def _distinct(found: pa.Table, rows: pa.Table) -> pa.Table:
    """Each row once, without those that are there with their text."""
    names = _named(found)
    first = np.unique(names.dictionary_encode().indices.to_numpy(zero_copy_only=False), return_index=True)[1]
    once = np.zeros(len(names), dtype=bool)
    once[first] = True
    return found.filter(pc.and_(pa.array(once), pc.invert(pc.is_in(names, _named(rows)))))


def _named(table: pa.Table) -> pa.Array:
    """What tells rows apart: the record (a made-up one has its own) and where it was said."""
    where = [pc.cast(table[name], pa.string()) for name in ("partition", "offset")]
    return pc.binary_join_element_wise(table["record_id"], *where, "/").combine_chunks()
