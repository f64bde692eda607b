"""Exported rows: TRL's forms to the letter, the latest of each record, and a whole file or none."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from deploy.exporting import (
    ExportError,
    FileFormat,
    Kind,
    SftForm,
    Split,
    Wanted,
    example,
    examples,
    moment,
    schema_of,
    survivors,
    whole,
    write,
)
from deploy.importing import Columns, read
from schemas.events import RecordSubmitted, ShardRef
from streams.artifacts import ArtifactError, ArtifactStore
from tests.unit.test_dataset import shard
from tests.unit.test_dataset import stored as stored_row
from trainers.rows import read_rows

pytestmark = pytest.mark.slow

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}]
SAID = {"role": "assistant", "content": "There."}
OTHER = {"role": "assistant", "content": "Nowhere."}
ROWS: dict[str, dict[str, Any]] = {
    "sft": {"kind": "sft", "messages": TURNS, "completion": "There."},
    "preference": {"kind": "preference", "messages": TURNS, "completion": "", "chosen": "There.", "rejected": "Nowhere."},
    "kto": {"kind": "kto", "messages": TURNS, "completion": "There.", "label": False},
}
# Keys and shapes as TRL's guide "Dataset formats and types" has them for conversational data.
TRL: list[tuple[str, SftForm, dict[str, Any]]] = [
    ("sft", SftForm.messages, {"messages": [*TURNS, SAID]}),
    ("sft", SftForm.prompt_completion, {"prompt": TURNS, "completion": [SAID]}),
    ("preference", SftForm.messages, {"prompt": TURNS, "chosen": [SAID], "rejected": [OTHER]}),
    ("kto", SftForm.messages, {"prompt": TURNS, "completion": [SAID], "label": False}),
]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"))


def stored(prompt: str, completion: str, **fields: Any) -> dict[str, Any]:
    return stored_row(prompt, completion, **{"input_hash": prompt, "origin": "import", **fields})


def exported(store: ArtifactStore, refs: list[ShardRef], wanted: Wanted | None = None) -> list[dict[str, Any]]:
    batches = examples(store, refs, survivors(store, refs), wanted or Wanted(split=Split.all))
    return [one for batch in batches for one in batch]


def answers(store: ArtifactStore, refs: list[ShardRef], wanted: Wanted | None = None) -> list[str]:
    return [one["messages"][-1]["content"] for one in exported(store, refs, wanted)]


@pytest.mark.parametrize(("kind", "form", "expected"), TRL)
def test_each_kind_has_trls_form(kind: str, form: SftForm, expected: dict[str, Any]) -> None:
    assert example(ROWS[kind], form) == expected
    assert schema_of(Wanted(Kind(kind), sft_form=form)).names == list(expected)


@pytest.mark.parametrize(("kind", "form", "expected"), TRL)
@pytest.mark.parametrize("format", FileFormat)
def test_files_hold_the_forms(kind: str, form: SftForm, expected: dict[str, Any], format: FileFormat) -> None:
    target = io.BytesIO()
    wanted, done = Wanted(Kind(kind), sft_form=form), []
    assert write(target, iter([[expected], [], [expected, expected]]), wanted, format, done.append) == 3
    assert done == [1, 2, 3]
    if format is FileFormat.jsonl:
        assert [json.loads(line) for line in target.getvalue().splitlines()] == [expected] * 3
    else:
        table = pq.read_table(io.BytesIO(target.getvalue()))
        assert table.to_pylist() == [expected] * 3 and table.schema.equals(schema_of(wanted))


@pytest.mark.parametrize(("kind", "form", "expected"), TRL)
@pytest.mark.parametrize("format", FileFormat)
def test_the_library_that_trl_reads_with_loads_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, form: SftForm, expected: dict[str, Any], format: FileFormat
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import load_dataset

    path, wanted = tmp_path / f"rows.{format}", Wanted(Kind(kind), sft_form=form)
    with whole(path) as target:
        write(target, iter([[expected, expected]]), wanted, format)
    reader = "json" if format is FileFormat.jsonl else "parquet"
    rows = load_dataset(reader, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.column_names == list(expected) and rows.to_list() == [expected, expected]


@pytest.mark.parametrize(("kind", "form", "expected"), TRL)
def test_what_is_exported_can_be_added_again(tmp_path: Path, kind: str, form: SftForm, expected: dict[str, Any]) -> None:
    path = tmp_path / "rows.jsonl"
    with whole(path) as target:
        write(target, iter([[expected]]), Wanted(Kind(kind), sft_form=form), FileFormat.jsonl)
    (record,) = read(path, "support", Columns())
    assert isinstance(record, RecordSubmitted), record
    assert (record.kind, record.label) == (kind, ROWS[kind].get("label"))
    assert [{"role": turn.role, "content": turn.content} for turn in record.messages] == TURNS
    assert (record.completion, record.chosen, record.rejected) == tuple(
        ROWS[kind].get(name, "") for name in ("completion", "chosen", "rejected")
    )


def test_the_latest_row_of_a_record_is_exported_and_no_other(store: ArtifactStore) -> None:
    early = shard(store, "a", stored("where?", "wrong", at=1, record_id="r"), stored("who?", "me", at=2))
    late = shard(store, "b", stored("where?", "right", at=3, record_id="r"))
    assert answers(store, [early, late]) == ["me", "right"]
    assert answers(store, [late, early]) == ["right", "me"], "the order of the shards decides nothing"
    assert answers(store, [early]) == ["wrong", "me"]


def test_the_latest_answer_to_a_question_is_exported_and_no_other(store: ArtifactStore) -> None:
    ref = shard(store, "a", stored("where?", "there", at=1), stored("where?", "here", at=2), stored("who?", "me", at=3))
    assert answers(store, [ref]) == ["here", "me"]
    thumbs = [stored("where?", "there", at=n, kind="kto", label=bool(n)) for n in range(2)]
    assert [one["label"] for one in exported(store, [shard(store, "b", *thumbs)], Wanted(Kind.kto, Split.all))] == [False, True]


def test_what_was_augmented_goes_with_what_it_was_made_from(store: ArtifactStore) -> None:
    made = {"origin": "augmented", "input_hash": "wehre?"}
    first = shard(store, "a", stored("where?", "wrong", at=1, record_id="r"), stored("wehre?", "wrong", at=1, record_id="r/swapped", **made))
    assert answers(store, [first]) == ["wrong", "wrong"]
    second = shard(store, "b", stored("where?", "right", at=2, record_id="r"))
    assert answers(store, [first, second]) == ["right"], "the correction was not augmented: its predecessor's rows go all the same"


def test_a_statement_that_arrives_late_is_not_a_correction(store: ArtifactStore) -> None:
    first = shard(store, "a", stored("where?", "said at 9", at=9, record_id="r"))
    second = shard(store, "b", stored("where?", "said at 1", at=1, record_id="r"))
    assert answers(store, [first, second]) == ["said at 9"]


def test_a_range_that_was_prepared_twice_is_exported_once(store: ArtifactStore) -> None:
    old = shard(store, "rules-1", stored("where?", "unmended", at=1))
    new = shard(store, "rules-2", stored("where?", "mended", at=1))
    assert answers(store, [old, new]) == ["mended"]


def test_a_correction_that_is_not_wanted_hides_what_it_corrects(store: ArtifactStore) -> None:
    """Else a row that has become a hold-out's would be trained on."""
    ref = shard(store, "a", stored("a?", "was train", at=1, record_id="r"), stored("a?", "is test", at=2, record_id="r", split="test"))
    assert answers(store, [ref], Wanted(split=Split.train)) == []
    assert answers(store, [ref], Wanted(split=Split.test)) == ["is test"]


def test_kind_split_and_time_choose(store: ArtifactStore) -> None:
    kto = {"kind": "kto", "label": True}
    ref = shard(store, "a", stored("a?", "1", at=1), stored("b?", "2", at=2, split="test"), stored("c?", "3", at=3, **kto), stored("d?", "4", at=4))
    assert answers(store, [ref], Wanted()) == ["1", "4"]
    assert answers(store, [ref], Wanted(split=Split.all)) == ["1", "2", "4"]
    assert answers(store, [ref], Wanted(since_ms=4)) == ["4"]
    assert [one["label"] for one in exported(store, [ref], Wanted(kind=Kind.kto))] == [True]


def test_empty_shards_and_no_shards(store: ArtifactStore) -> None:
    empty, full = shard(store, "a"), shard(store, "b", stored("where?", "there", at=1))
    assert answers(store, [empty, full, empty]) == ["there"]
    assert answers(store, [empty]) == [] and survivors(store, []) == []


def test_one_shard_at_a_time_is_in_memory(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = [shard(store, name, stored(name, "x", at=n)) for n, name in enumerate("abc")]
    kept, looked = survivors(store, refs), []
    get = store.get_bytes
    monkeypatch.setattr(store, "get_bytes", lambda path, digest: looked.append(path) or get(path, digest))
    batches = examples(store, refs, kept, Wanted())
    for number in range(1, 4):
        next(batches)
        assert len(looked) == number


def test_a_damaged_shard_ends_the_export(store: ArtifactStore, tmp_path: Path) -> None:
    ref = shard(store, "a", stored("where?", "there", at=1))
    (tmp_path / "artifacts" / ref.path).write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match=ref.path):
        survivors(store, [ref])


def test_a_file_is_whole_or_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"old")
    with pytest.raises(ArtifactError), whole(path) as target:
        target.write(b"half")
        target.flush()
        assert path.read_bytes() == b"old"
        raise ArtifactError("gone")
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"] and path.read_bytes() == b"old"
    with whole(path) as target:
        target.write(b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"] and path.read_bytes() == b"new"


def test_where_no_file_can_be_is_said(tmp_path: Path) -> None:
    for path, why in ((tmp_path, "that is a folder"), (tmp_path / "no" / "file", "there is no such folder")):
        with pytest.raises(ExportError, match=why), whole(path):
            pass


def test_a_time_without_a_zone_is_utc() -> None:
    assert moment("1970-01-02") == moment("1970-01-02T00:00Z") == 86_400_000
    assert moment("1970-01-02T01:00+01:00") == 86_400_000
    with pytest.raises(ExportError, match="expected MODEL@N, a date or a time"):
        moment("yesterday")


def test_whose_word_overrules_whose_is_as_in_a_job(store: ArtifactStore) -> None:
    """A newer answer by another unit holds where anybody's does; where not, both stand until three say the same."""
    words = [("a", "ann"), ("b", "bob"), ("b", "cy"), ("b", "dee")]
    refs = [shard(store, f"s{n}", stored("q", answer, at=n, unit=unit)) for n, (answer, unit) in enumerate(words)]

    def left(count: int, corrections: str) -> list[str]:
        kept = survivors(store, refs[:count], corrections)
        batches = examples(store, refs[:count], kept, Wanted(split=Split.all))
        return [one["messages"][-1]["content"] for batch in batches for one in batch]

    assert left(2, "anyone") == ["b"] and left(2, "trusted") == ["a", "b"]
    assert left(3, "trusted") == ["a", "b"] and left(4, "trusted") == ["b"]
    for count in range(1, 5):
        for corrections in ("anyone", "trusted"):
            stands = {row.completion for row in read_rows(store, refs[:count], (), corrections).said}
            assert set(left(count, corrections)) == stands


@pytest.mark.parametrize("corrections", ["anyone", "trusted"])
@pytest.mark.parametrize("seed", range(8))
def test_an_export_holds_the_answers_that_a_job_learns(store: ArtifactStore, seed: int, corrections: str) -> None:
    """Whatever was said in whatever order: corrections, thumbs, thumbs taken back, and rows that a machine made."""
    dice = random.Random(seed)
    refs = []
    for number in range(30):
        kind = dice.choice(["sft"] * 4 + ["kto"])
        made = {"origin": "synthetic", "source_record": f"r{dice.randrange(number + 1)}"} if dice.random() < 0.25 else {}
        if made:
            kind = "sft"
        refs.append(shard(store, f"s{number}", stored(
            f"q{dice.randrange(5)}", dice.choice("ab"), at=number, unit=f"u{dice.randrange(4)}", kind=kind, offset=number,
            label=dice.random() < 0.7 if kind == "kto" else None, record_id=f"r{dice.choice([number, number, number // 2])}", **made,
        )))  # fmt: skip
    rows = read_rows(store, refs, (), corrections)
    learned = {(row.messages[0]["content"], row.completion) for row in (*rows.said, *rows.made)}
    kept = survivors(store, refs, corrections)
    batches = examples(store, refs, kept, Wanted(split=Split.all))
    assert {(m[0]["content"], m[1]["content"]) for batch in batches for m in (one["messages"] for one in batch)} == learned
