"""From shards to examples: whose word stands, nobody says too much, no question of a hold-out is trained on."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import ShardRef
from schemas.identity import content_hash, normalise, question_of
from schemas.policy import ModelPolicy
from schemas.shards import SHARD_SCHEMA
from streams.artifacts import ArtifactError, ArtifactStore
from streams.prepare.near import signature, similarity
from streams.prepare.questions import FEW, PERIOD_MS
from trainers import rows as rows_module
from trainers.dataset import capped, training_set
from trainers.rows import Row, Rows, judging_rows, near_any, read_rows, stand

POLICY = ModelPolicy(replay_share=1.0)


def row(question: str, answer: str = "answer", split: str = "train", at: int = 0, **fields: Any) -> Row:
    values: dict[str, Any] = {
        "messages": ({"role": "user", "content": question},), "completion": answer, "split": split,
        "record_id": f"{question}/{at}/{fields.get('unit', '')}", "order": (at, 0, at), "unit": f"unit of {question}",
        "question": question_of(question), "fact": content_hash(normalise(question)), "answer": content_hash(answer),
        "minhash": signature(normalise(question)),
    }  # fmt: skip
    return Row(**{**values, **fields})


def rows(prefix: str, count: int, **fields: Any) -> list[Row]:
    return [row(f"{prefix}{number}", at=number, **fields) for number in range(count)]


def said(*some: Row) -> Rows:
    return Rows(said=list(some))


def prompts(chosen: Any) -> set[str]:
    return {entry.messages[0]["content"] for entry in chosen}


def stored(question: str, answer: str, *, at: int = 0, **fields: Any) -> dict[str, Any]:
    one = row(question, answer, at=at)
    values = {
        "record_id": one.record_id, "kind": "sft", "split": "train", "completion": answer, "submitted_ms": at,
        "messages": [{"role": "user", "content": question}], "partition": 0, "offset": at, "unit": one.unit,
        "question": one.question, "input_hash": one.fact, "answer_hash": one.answer, "judges": True, "origin": "import",
        "minhash": one.minhash, "dated": True,
    }  # fmt: skip
    return {**values, **fields}


def shard(store: ArtifactStore, name: str, *some: dict[str, Any]) -> ShardRef:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(some), schema=SHARD_SCHEMA), sink)
    path = f"shards/{name}.parquet"
    return ShardRef(shard_id=name, path=path, digest=store.put_bytes(path, sink.getvalue()), rows=len(some))


def answers(found: Rows) -> list[str]:
    return [entry.completion for entry in (*found.said, *found.made)]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"))


def test_the_newest_answer_wins_in_whatever_order_shards_come(store: ArtifactStore) -> None:
    early = shard(store, "a", stored("where?", "old", at=1), stored("who?", "me", at=2))
    late = shard(store, "b", stored(" WHERE? ", "new", at=3))
    for shards in ([early, late], [late, early]):
        assert answers(read_rows(store, shards)) == ["me", "new"]
    both = read_rows(store, [late], [early])
    assert [(entry.completion, entry.new) for entry in both.said] == [("me", False), ("new", True)], "across a job's sets"


def test_a_correction_replaces_its_record_even_with_another_prompt(store: ArtifactStore) -> None:
    first = shard(store, "a", stored("where?", "old", at=1, record_id="r"))
    second = shard(store, "b", stored("where is it?", "new", at=2, record_id="r"))
    assert answers(read_rows(store, [second, first])) == ["new"]


def test_a_correction_reaches_the_hold_out_whoever_was_asked(store: ArtifactStore) -> None:
    frozen = shard(store, "a", stored("where?", "refund", at=1, split="test", unit="ann"))
    corrected = shard(store, "b", stored("where?", "refund_request", at=2, unit="bob"))
    assert judging_rows(read_rows(store, [corrected], [frozen]), 0.85) == [], "nothing judges by what is no longer so"
    anew = shard(store, "c", stored("where?", "refund_request", at=3, split="test", unit="ann"))
    assert [one.row.completion for one in judging_rows(read_rows(store, [corrected, anew], [frozen]), 0.85)] == ["refund_request"]


@pytest.mark.parametrize("origin", ["augmented", "synthetic"])
def test_a_made_up_row_falls_with_the_row_that_it_was_made_from(store: ArtifactStore, origin: str) -> None:
    source = stored("where?", "refund", at=1, record_id="r")
    made = stored("wheer has it gone", "refund", at=1, record_id="r/x", origin=origin, source_record="r")
    early, late = shard(store, "a", source, made), shard(store, "b", stored("where?", "complaint", at=2))
    assert answers(read_rows(store, [early])) == ["refund", "refund"]
    assert answers(read_rows(store, [early, late])) == ["complaint"]
    assert answers(read_rows(store, [late], [early])) == ["complaint"], "also where the correction came with another job"


def test_a_made_up_row_is_never_read_as_peoples(store: ArtifactStore) -> None:
    made = stored("where?", "refund", origin="synthetic", record_id="m", unit="", judges=False)
    found = read_rows(store, [shard(store, "a", made)])
    assert (found.said, len(found.made), judging_rows(found, 0.85)) == ([], 1, [])


def test_contested_answers_both_teach_and_neither_judges() -> None:
    both = [row("where?", "a", "test", at=1, unit="ann"), row("where?", "b", "test", at=2, unit="bob")]
    assert len(stand(both, "trusted").said) == 2 and judging_rows(stand(both, "trusted"), 0.85) == []
    assert [one.row.completion for one in judging_rows(stand(both, "anyone"), 0.85)] == ["b"]


def test_what_was_called_right_judges_and_is_not_learned(store: ArtifactStore) -> None:
    up = stored("where?", "parcel", at=1, kind="kto", label=True, split="test", unit="ann")
    down = stored("who?", "parcel", at=2, kind="kto", label=False, split="test", unit="ann")
    taught = stored("when?", "refund", at=3, unit="bob")
    found = read_rows(store, [shard(store, "a", up, down, taught)])
    assert [one.row.completion for one in judging_rows(found, 0.85)] == ["parcel"]
    assert prompts(training_set(found, POLICY, seed=1).rows) == {"when?"}
    both = read_rows(store, [shard(store, "b", up, stored("where?", "parcel", at=1, split="test", unit="ann", record_id="x"))])
    assert len(judging_rows(both, 0.85)) == 1, "said in two ways it counts once"
    corrected = read_rows(store, [shard(store, "c", up, stored("where?", "refund", at=9, split="test", unit="ann"))])
    assert [one.row.completion for one in judging_rows(corrected, 0.85)] == ["refund"], "a later word holds"


DAY_MS = 86_400_000


def asked(answer: str, days: range, per_day: int = 4, **fields: Any) -> list[Row]:
    return [
        row(f"{answer} {day} {n}", answer, "test" if n == 0 else "train", at=day * DAY_MS + n, unit=f"u{answer}{day}{n}", **fields)
        for day in days for n in range(per_day)
    ]  # fmt: skip


def kept(rows: list[Row]) -> tuple[set[str], set[str]]:
    """The answers that judge, and those that teach."""
    found = stand(rows)
    return {one.row.completion for one in judging_rows(found, 0.85)}, {one.completion for one in training_set(found, POLICY, seed=1).rows}


def test_a_class_that_nobody_is_given_any_more_judges_and_teaches_no_longer() -> None:
    before, after = asked("order", range(30)) + asked("return", range(30)), asked("return", range(30, 50))
    for days, judges in ((5, True), (8, True), (11, False), (20, False)):
        both = {"order", "return"} if judges else {"return"}
        assert kept(before + [one for one in after if one.said_ms < (30 + days) * DAY_MS]) == (both, both)
    renamed = asked("order_2", range(30, 50))
    assert kept(before + after + renamed) == ({"order_2", "return"}, {"order_2", "return"})


def test_a_class_that_was_always_rare_or_a_text_of_its_own_does_not_end() -> None:
    rare = asked("warranty", range(0, 30, 6), per_day=1) + asked("warranty", range(1, 30, 6), per_day=2)
    often = asked("return", range(40))
    assert "warranty" in kept(rare + often)[0], "three weeks of few are no proof"
    texts = [row(f"q{n}", f"a text of its own {n}", "test", at=n * DAY_MS, unit=f"u{n}") for n in range(60)]
    assert len(kept(texts)[0]) == 60


def test_what_has_no_time_of_its_own_does_not_end() -> None:
    imported = [replace(one, dated=False) for one in asked("order", range(1))] * 1
    assert "order" in kept(imported + asked("return", range(1, 60)))[0]


def test_rows_of_one_moment_are_ordered_by_where_they_stood(store: ArtifactStore) -> None:
    both = [stored("a", answer, at=5, record_id=answer, partition=p, offset=o) for answer, p, o in
            (("second", 1, 2), ("first", 1, 1), ("zeroth", 0, 9))]  # fmt: skip
    assert answers(read_rows(store, [shard(store, "a", *both)])) == ["second"]


def test_only_supervised_rows_are_read_and_only_from_whole_shards(store: ArtifactStore) -> None:
    mixed = shard(store, "a", stored("a", "b"), stored("c", "d", kind="kto", label=False), stored("e", "", kind="preference"))
    assert answers(read_rows(store, [mixed])) == ["b"]
    with pytest.raises(ArtifactError):
        read_rows(store, [ShardRef(shard_id="a", path=mixed.path, digest="0" * 64, rows=3)])


def test_no_question_of_a_hold_out_is_trained_on_nor_a_near_copy_of_it() -> None:
    long = "my parcel with the blue jacket was to arrive on monday and it is still not here, what shall i do"
    held = [row("c", split="test"), row("d", split="validation"), row(long, split="test")]
    free = [row("A"), row("b"), row("C"), row("D"), row(long + "!")]
    assert prompts(training_set(said(*held, *free), POLICY, seed=1).rows) == {"A", "b"}
    apart = ModelPolicy(near_duplicate_similarity=1.0)
    assert prompts(training_set(said(*held, *free), apart, seed=1).rows) == {"A", "b", long + "!"}


def test_a_question_of_many_is_trained_on_and_judged() -> None:
    many = [row("where?", split="test" if n == 0 else "train", at=n, unit=f"u{n}") for n in range(FEW)]
    assert len(training_set(said(*many), POLICY, seed=1).rows) == FEW - 1
    (judged,) = judging_rows(said(*many), 0.85)
    assert judged.common
    assert training_set(said(*many[: FEW - 1]), POLICY, seed=1).rows == (), "asked by fewer it lies on one side"


def test_each_later_asker_of_the_test_side_adds_weight() -> None:
    many = [row("where?", split="test" if n < 2 else "train", at=n, unit=f"u{n}") for n in range(FEW)]
    later = [row("where?", split=side, at=50 + n, unit=f"{side}{n}", kind="asked") for side in ("test", "train") for n in range(6)]
    found = judging_rows(Rows(said=many, asked=later), 0.85)
    assert [(one.row.unit, one.weight) for one in found] == [("u0", 4.0), ("u1", 4.0)]


@given(st.data())
def test_no_question_of_a_hold_out_is_trained_on_whatever_the_data(data: st.DataObject) -> None:
    some = st.lists(st.builds(row, st.sampled_from("abcdef"), split=st.sampled_from(["train", "test", "validation"]),
                              unit=st.sampled_from("123456"), new=st.booleans(), at=st.integers(0, 99)))  # fmt: skip
    everything = stand(data.draw(some))
    policy = ModelPolicy(replay_share=data.draw(st.sampled_from([0.0, 0.5, 1.0])), max_replay_examples=9)
    chosen = training_set(everything, policy, seed=0)
    held = {entry.question for entry in everything.said if entry.split != "train"} - everything.common(0.85)
    assert not held & {entry.question for entry in chosen.rows}
    assert chosen.new + chosen.replayed == len(chosen.rows) and chosen.replayed <= 9


def test_nobody_says_more_in_thirty_days_than_the_policy_allows_however_it_came() -> None:
    drip = [row(f"q{n}", at=n * (PERIOD_MS // 60), unit="ann") for n in range(120)]
    others = [row(f"o{n}", at=n, unit=f"u{n}") for n in range(900)]
    kept = [entry for entry in capped([*drip, *others], 10) if entry.unit == "ann"]
    times = [entry.said_ms for entry in kept]
    assert max(sum(at <= other < at + PERIOD_MS for other in times) for at in times) == 10
    assert len(kept) == 20 and kept[-1] is drip[-1], "the newest stay"


@pytest.mark.parametrize(
    ("counts", "most"),
    [([500], 500), ([500, 10], 10), ([3] * 20, 3), ([1] * 20 + [50], 2), ([100] * 9 + [1000], 100), ([5] * 40 + [90, 80], 25)],
)
def test_nobody_has_more_than_a_share_of_a_set(counts: list[int], most: int) -> None:
    some = [row(f"{unit}/{n}", at=n, unit=f"u{unit}") for unit, count in enumerate(counts) for n in range(count)]
    kept = capped(some, 10_000)
    by_unit = {unit: sum(entry.unit == f"u{unit}" for entry in kept) for unit in range(len(counts))}
    assert max(by_unit.values()) == most
    assert max(by_unit.values()) <= max(0.1, 1 / len(counts)) * len(kept) + 1e-9


def test_what_hold_outs_take_away_is_named_where_it_is_much() -> None:
    held = [row(f"q{n}", split="test", unit=f"t{n}") for n in range(30)]
    twins = [row(f"q{n}", "refund", at=1, unit=f"x{n}") for n in range(30)]
    free = [row(f"free {n} {n * 7919}", "parcel", unit=f"f{n}") for n in range(100)]
    chosen = training_set(stand([*held, *twins, *free], "trusted"), POLICY, seed=1)
    assert chosen.left_out["question of a hold-out"] == 30
    assert len(chosen.warnings) == 2 and "30 of 130" in chosen.warnings[0] and "class 'refund': 30 of 30" in chosen.warnings[1]
    assert training_set(said(*free), POLICY, seed=1).warnings == ()


@pytest.mark.parametrize(
    ("new", "old", "share", "most", "replayed"),
    [
        (100, 500, 0.5, 1_000, 100),
        (100, 500, 0.2, 1_000, 25),
        (100, 500, 0.75, 1_000, 300),
        (100, 500, 0.0, 1_000, 0),
        (100, 40, 0.5, 1_000, 40),
        (100, 500, 0.5, 30, 30),
        (100, 500, 1.0, 1_000, 500),
        (100, 500, 1.0, 30, 30),
        (0, 500, 0.5, 1_000, 0),
        (100, 0, 0.5, 1_000, 0),
    ],
)
def test_replay_makes_up_its_share(new: int, old: int, share: float, most: int, replayed: int) -> None:
    policy = ModelPolicy(replay_share=share, max_replay_examples=most)
    chosen = training_set(said(*rows("n", new), *rows("o", old, new=False)), policy, seed=3)
    assert (chosen.new, chosen.replayed, len(chosen.rows)) == (new, replayed, new + replayed)
    assert sum(entry.messages[0]["content"].startswith("o") for entry in chosen.rows) == replayed


def test_a_seed_decides_the_order_and_the_choice() -> None:
    def drawn(seed: int) -> list[str]:
        policy = ModelPolicy(replay_share=0.5)
        chosen = training_set(said(*rows("n", 50), *rows("o", 200, new=False)), policy, seed=seed)
        return [entry.record_id for entry in chosen.rows]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1) != sorted(drawn(1)), "new and replayed rows are mixed"


@pytest.mark.parametrize("least", [0.7, 0.85, 0.95])
def test_near_copies_are_found_as_by_comparing_every_pair(least: float) -> None:
    chance = random.Random(3)
    words = [f"{chance.randrange(10**6):06d}" for _ in range(400)]
    texts = [" ".join(chance.sample(words, 14)) for _ in range(120)]
    copies = [text.replace(text.split()[k], "", 1) for text in texts for k in range(0, 12, 3)]
    ours, theirs = [row(text) for text in (*copies, *texts[60:], "other")], [row(text) for text in texts[:60]]
    marks = [np.frombuffer(one.minhash, dtype=np.uint8) for one in theirs]
    alike = [any(similarity(np.frombuffer(o.minhash, dtype=np.uint8), mark) >= least for mark in marks) for o in ours]
    found = near_any(ours, theirs, least).tolist()
    assert 10 < sum(alike) < len(alike) and not any(f and not a for f, a in zip(found, alike, strict=True))
    assert sum(found) >= 0.98 * sum(alike)


def test_looking_for_near_copies_does_not_grow_with_rows_times_others(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    real = rows_module.similarities
    monkeypatch.setattr(rows_module, "similarities", lambda a, b: compared.append(len(a)) or real(a, b))
    many = [row(f"question {n * n} about {n * 7919} and {n * 104_729}") for n in range(2_000)]
    near_any(many[:1_000], many[1_000:], 0.85)
    assert sum(compared) < 0.02 * 1_000 * 1_000


def test_what_one_person_answered_is_no_class_and_stays_out_of_warnings() -> None:
    held = [row(f"q{n}", split="test", unit=f"t{n}") for n in range(9)]
    twins = [row(f"q{n}", "my name is Jane", at=1, unit="jane") for n in range(9)]
    said_of = training_set(stand([*held, *twins, row("free", "parcel")], "trusted"), POLICY, seed=1).warnings
    assert len(said_of) == 1 and "Jane" not in said_of[0]
