"""The fault machine's oracle alone: a run without defects is clean, and each kind of defect is reported as what it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from msgspec.structs import replace as altered

from streams.kafka import Record
from tests.faults import oracle
from tests.faults.__main__ import percentile
from tests.faults.oracle import Expected, Verdict
from tests.faults.plan import KINDS, drawn


def record(n: int, value: bytes | None = None, batch: str = "") -> Record:
    headers = [("batch", batch.encode())] if batch else []
    return Record("t", n % 2, n, 0, b"copy-%d-%d" % (n % 2, n // 2), b"v%d" % n if value is None else value, headers)


def expect(one: Record) -> Expected:
    if one.value == b"poison":
        return Expected(one.origin.encode(), b"poison", dead=True)
    return Expected(one.key or b"", b"<" + (one.value or b"") + b">")


INPUTS = [record(n) for n in range(6)]
OUTPUTS = [record(n, b"<v%d>" % n, f"b{n // 3}/3") for n in range(6)]


def copied(outputs: list[Record], inputs: list[Record] = INPUTS, letters: list[Record] | None = None) -> Counter[str]:
    return +oracle.copied(inputs, outputs, letters or [], expect).counts


def test_each_once_in_order_is_clean() -> None:
    assert copied(OUTPUTS) == {}


@pytest.mark.parametrize(("change", "kind"), [
    (lambda said: said[3:], "lost"),
    (lambda said: [*said, altered(said[0], offset=99, headers=[])], "doubled"),
    (lambda said: said[:5], "torn"),
    (lambda said: [altered(said[0], value=b"<v9>"), *said[1:]], "torn"),
    (lambda said: [*said, Record("t", 0, 99, 0, b"aborted-copy-1", b"x", [])], "torn"),
    (lambda said: [said[2], said[1], said[0], *said[3:]], "torn"),
    (lambda said: [altered(said[0], partition=1), *said[1:]], "lost"),
])  # fmt: skip
def test_a_defect_of_a_copy_is_reported(change: Callable[[list[Record]], list[Record]], kind: str) -> None:
    assert copied(change(OUTPUTS))[kind] > 0


def test_dead_letters_are_the_poison_and_nothing_else() -> None:
    inputs = [*INPUTS, record(6, b"poison")]
    letter = Record("dead", 0, 0, 0, b"t/0/6", b"poison", [])
    assert copied(OUTPUTS, inputs, [letter]) == {}
    assert copied(OUTPUTS, inputs) == {"lost": 1}
    assert copied(OUTPUTS, inputs, [letter, letter]) == {"doubled": 1}
    assert copied(OUTPUTS, inputs, [altered(letter, value=b"poi")]) == {"torn": 1}
    assert copied(OUTPUTS, INPUTS, [letter]) == {"torn": 1}


@dataclass
class Shard:
    first_offset: int
    last_offset: int
    rows: list[tuple[int, int]] | None
    dropped: dict[str, int] = field(default_factory=dict)
    source_partition: int = 0
    shard_id: str = ""
    digest: str = ""
    replaces: str = ""
    erased: int = 0

    def __post_init__(self) -> None:
        self.shard_id = self.shard_id or f"s{self.first_offset}"


def rows(*offsets: int) -> list[tuple[int, int]]:
    return [(0, offset) for offset in offsets]


GOOD = [Shard(1, 4, rows(1, 4), {"duplicate": 1}), Shard(5, 9, rows(5, 9))]


@pytest.mark.parametrize(("shards", "found"), [
    (GOOD, {}),
    (GOOD[:1], {"lost": 2}),
    (GOOD[1:], {"lost": 3}),
    ([replace(GOOD[0], rows=rows(1)), GOOD[1]], {"lost": 1}),
    ([GOOD[0], Shard(6, 9, rows(9))], {"lost": 1}),
    ([GOOD[0], Shard(4, 9, rows(5, 9))], {"doubled": 1}),
    ([GOOD[0], replace(GOOD[1], rows=rows(5, 5, 9))], {"doubled": 2}),
    ([GOOD[0], replace(GOOD[1], dropped={"noise": 1})], {"doubled": 1}),
    ([GOOD[0], replace(GOOD[1], rows=None)], {"torn": 1}),
    ([GOOD[0], replace(GOOD[1], rows=rows(5, 8))], {"torn": 1}),
])  # fmt: skip
def test_shards_account_for_every_offset_once(shards: list[Shard], found: dict[str, int]) -> None:
    verdict = oracle.prepared({0: [1, 2, 4, 5, 9]}, shards, lambda shard: shard.rows, reasons=["duplicate", "noise"])
    assert +verdict.counts == found, verdict.findings


def test_a_drop_that_the_input_gives_no_reason_for_is_a_loss() -> None:
    verdict = oracle.prepared({0: [1, 2, 4, 5, 9]}, GOOD, lambda shard: shard.rows)
    assert +verdict.counts == {"lost": 1} and "duplicate" in verdict.findings[0]


ERASED = replace(GOOD[0], digest="b", replaces="a", rows=rows(1), erased=1)


@pytest.mark.parametrize(("shards", "found"), [
    ([replace(GOOD[0], digest="a"), ERASED, GOOD[1]], {}),
    ([replace(GOOD[0], rows=rows(1), dropped={"duplicate": 1, "erased": 1}), GOOD[1]], {}),
    ([replace(GOOD[0], digest="a"), GOOD[1]], {"torn": 1}),
    ([ERASED, GOOD[1]], {"torn": 1}),
    ([replace(GOOD[0], digest="a"), replace(ERASED, replaces="c"), GOOD[1]], {"torn": 1}),
    ([replace(GOOD[0], digest="a"), replace(ERASED, replaces=""), GOOD[1]], {"doubled": 1}),
    ([replace(GOOD[0], digest="a"), replace(ERASED, rows=[], erased=1), GOOD[1]], {"lost": 1}),
    ([replace(GOOD[0], digest="a"), replace(ERASED, rows=[], erased=2), GOOD[1]], {"lost": 1}),
])  # fmt: skip
def test_what_was_forgotten_is_gone_and_accounted_for(shards: list[Shard], found: dict[str, int]) -> None:
    verdict = oracle.prepared({0: [1, 2, 4, 5, 9]}, shards, lambda shard: shard.rows, {(0, 4)}, ["duplicate", "erased"])
    assert +verdict.counts == found, verdict.findings


def test_an_erasure_has_its_receipt_and_leaves_no_value_behind() -> None:
    early = {b"copy-0-1"}
    assert +oracle.forgotten(["e"], ["e"], early, [INPUTS[0], altered(INPUTS[2], value=None)]).counts == {}
    assert +oracle.forgotten(["e"], [], early, []).counts == {"lost": 1}
    assert +oracle.forgotten(["e"], ["e"], early, INPUTS).counts == {"torn": 1}


@pytest.mark.parametrize(("rows", "found"), [
    ([((0, 1), "a"), ((0, 2), "b")], {}),
    ([((0, 1), "a")], {"lost": 1}),
    ([((0, 1), "a"), ((0, 2), "b"), ((0, 2), "b")], {"doubled": 1}),
    ([((0, 1), "a"), ((0, 2), "a")], {"torn": 1}),
    ([((0, 1), "a"), ((0, 2), "b"), ((0, 3), "c")], {"torn": 1}),
])  # fmt: skip
def test_a_table_equals_its_topic(rows: list[tuple[tuple[int, int], str]], found: dict[str, int]) -> None:
    assert +oracle.landed({(0, 1): "a", (0, 2): "b"}, rows).counts == found


@pytest.mark.parametrize(("ended", "found"), [
    ([("a", "x"), ("b", "x")], {}),
    ([("a", "x")], {"lost": 1}),
    ([("a", "x"), ("b", "x"), ("b", "x")], {"doubled": 1}),
    ([("a", "x"), ("b", "damaged")], {"torn": 1}),
    ([("a", "x"), ("b", "x"), ("c", "x")], {"torn": 1}),
])  # fmt: skip
def test_a_job_ends_once(ended: list[tuple[str, str]], found: dict[str, int]) -> None:
    assert +oracle.worked("ab", ended, lambda job_id, said: said == "x").counts == found


def test_the_input_itself_is_checked() -> None:
    said = {("copy", 0): 3, ("copy", 1): 3, ("sink", 0): 9}
    assert list(oracle.numbered(INPUTS, said, "copy")) == INPUTS
    for wrong in (INPUTS[:-1], INPUTS[1:], [*INPUTS, INPUTS[-1]], [altered(INPUTS[0], key=b"aborted-copy-0"), *INPUTS]):
        with pytest.raises(AssertionError):
            list(oracle.numbered(wrong, said, "copy"))


def test_personal_records_may_be_gone_from_the_input_and_no_others() -> None:
    said, filler = {("copy", 0): 3, ("copy", 1): 3}, record(9, b"")
    gone = [one for one in INPUTS if one.key not in (b"copy-0-1", b"copy-1-2")]
    fillers = [*gone, altered(filler, key=b"filler/erasure-1", value=None)]
    assert list(oracle.numbered(fillers, said, "copy", {b"copy-0-1", b"copy-1-2"})) == gone
    assert list(oracle.numbered(INPUTS, said, "copy", {b"copy-0-1"})) == INPUTS
    with pytest.raises(AssertionError):
        list(oracle.numbered(gone, said, "copy", {b"copy-0-1"}))


def test_verdicts_add_up() -> None:
    one, two = Verdict(), Verdict()
    one.add("lost", "a", 2)
    two.add("lost", "b")
    assert two.clean is False and Verdict().clean
    one.merge(two)
    assert one.counts["lost"] == 3 and len(one.findings) == 2


def test_a_plan_has_every_kind_and_follows_from_its_seed() -> None:
    strikes = drawn(7, 100)
    assert {strike.kind.name for strike in strikes} == {kind.name for kind in KINDS}
    assert strikes == drawn(7, 100) != drawn(8, 100)
    assert all(strike.lane == "copy" for strike in drawn(7, 100, ["copy"]))


def test_the_99th_percentile_is_a_value_that_was_seen() -> None:
    assert percentile(range(1, 201), 0.99) == 198 and percentile([3.0], 0.99) == 3.0 and percentile([], 0.5) == 0.0
