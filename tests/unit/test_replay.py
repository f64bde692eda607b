"""Dead letters read and chosen: which stand, what becomes of them, and what cannot be done."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from deploy.cli.dlq import body, counted, parted, readable
from deploy.cli.output import CommandError
from streams.dead_letters import LARGEST_BYTES, dead_letter
from streams.kafka import Out, Record
from streams.replay import Letter, ReplayError, Selection, batches, moves_away, moves_back, open_letters, parse_origin
from tests.broker import landed

RECORD = Record(
    topic="training.raw", partition=2, offset=17, timestamp_ms=1_700_000_000_000, key=b"\xff key", value=b"{\xff",
    headers=[("ce_type", b"RecordSubmitted"), ("x", None), ("x", b""), ("x", b"\x00")],
)  # fmt: skip


def letters(*records: Record, group: str = "prepare", reason: str = "no model") -> list[Letter]:
    return open_letters(group, [landed(dead_letter(group, one, reason), n, 5) for n, one in enumerate(records)])


def test_a_letter_gives_back_the_record_as_it_was() -> None:
    (letter,) = letters(RECORD)
    assert (letter.group, letter.origin, letter.reason, letter.refused_ms) == ("prepare", "training.raw/2/17", "no model", 5)
    assert letter.original == Out(
        "training.raw", RECORD.key, RECORD.value, RECORD.headers, partition=2, timestamp_ms=RECORD.timestamp_ms
    )
    assert letter.tombstone == Out("dead.prepare", b"training.raw/2/17", None, [], partition=0)


def test_a_record_that_looks_like_a_letter_confuses_nobody() -> None:
    forged = [("__connect.errors.topic", b"elsewhere"), ("__connect.errors.exception.message", b"forged"),
              ("tuneloop.original.key", b"forged"), ("tuneloop.original.timestamp", b"7"), ("mine", b"kept")]
    (letter,) = letters(replace(RECORD, headers=forged))
    assert letter.reason == "no model" and letter.original is not None
    assert letter.original.headers == [("mine", b"kept")]
    assert (letter.original.topic, letter.original.key, letter.original.timestamp_ms) == (
        "training.raw", RECORD.key, RECORD.timestamp_ms,
    )  # fmt: skip
    (without,) = letters(replace(RECORD, headers=forged, key=None))
    assert without.original is not None and without.original.key is None


def test_the_latest_of_a_key_stands_and_a_tombstone_ends_it() -> None:
    first, second = dead_letter("prepare", RECORD, "first"), dead_letter("prepare", RECORD, "second")
    gone = replace(first, value=None, headers=[])
    assert [one.reason for one in open_letters("prepare", [landed(first), landed(second, 1)])] == ["second"]
    assert open_letters("prepare", [landed(first), landed(second, 1), landed(gone, 2)]) == []
    assert [one.reason for one in open_letters("prepare", [landed(first), landed(gone, 1), landed(second, 2)])] == ["second"]


def test_a_tombstone_goes_to_its_letters_own_partition() -> None:
    (letter,) = open_letters("prepare", [landed(dead_letter("prepare", RECORD, "r"), partition=3)])
    assert letter.tombstone.partition == 3


@pytest.mark.parametrize("origin", ["training.raw/1/2", "a/0/0"])
def test_an_origin_is_parsed(origin: str) -> None:
    topic, partition, offset = parse_origin(origin) or ("", -1, -1)
    assert f"{topic}/{partition}/{offset}" == origin


@pytest.mark.parametrize("origin", ["", "training.raw", "a/1", "a/b/c", "/1/2", "a/-1/2", "a/1/2/3", "a/²/1"])
def test_what_is_no_origin_is_not(origin: str) -> None:
    assert parse_origin(origin) is None


@pytest.mark.parametrize(("selection", "chosen"), [
    (Selection(everything=True), [1, 2, 3]),
    (Selection(frozenset({"t/0/2", "t/0/9"})), [2]),
    (Selection(reason="NO Model"), [1, 3]),
    (Selection(frozenset({"t/0/1", "t/0/2"}), "model"), [1]),
])  # fmt: skip
def test_selection(selection: Selection, chosen: list[int]) -> None:
    reasons = {1: "no model 'a' configured", 2: "header ce_type: missing", 3: "no model 'b' configured"}
    known = [one for n, why in reasons.items() for one in letters(Record("t", 0, n, 1, b"k", b"v", []), reason=why)]
    assert [one.origin for one in selection.of(known)] == [f"t/0/{n}" for n in chosen]


@pytest.mark.parametrize("choice", [{}, {"reason": ""}, {"everything": True, "reason": "x"}, {"everything": True, "origins": frozenset("a")}])
def test_no_choice_and_two_choices_are_refused(choice: dict) -> None:
    with pytest.raises(ReplayError, match=r"which letters\? --all"):
        Selection(**choice)


def test_one_record_goes_back_once_and_ends_every_groups_letter_on_it() -> None:
    ours, theirs = letters(RECORD), letters(RECORD, group="monitor")
    other = letters(replace(RECORD, offset=9))
    (move,) = moves_back(ours, [*ours, *theirs, *other])
    assert move.outs == (ours[0].original, ours[0].tombstone, theirs[0].tombstone)
    (dropped,) = moves_away(ours)
    assert dropped.outs == (ours[0].tombstone,), "dropping ends the chosen letter alone"


def test_records_go_back_in_the_order_in_which_they_were_said() -> None:
    known = letters(*(replace(RECORD, offset=offset) for offset in (100, 9, 20)))
    assert [move.origin.rsplit("/", 1)[1] for move in moves_back(known, known)] == ["9", "20", "100"]


def test_what_cannot_go_back_is_named_before_anything_goes() -> None:
    keyless = letters(replace(RECORD, key=None))
    with pytest.raises(ReplayError, match=r"training\.raw/2/17 has no original key, and training\.raw takes none without"):
        moves_back(keyless, keyless)
    elsewhere = letters(replace(RECORD, topic="training.jobs", key=None))
    assert moves_back(elsewhere, elsewhere)[0].outs[0].key is None, "a topic that is not compacted takes it"
    stranger = open_letters("prepare", [Record("dead.prepare", 0, 0, 1, b"what is this", b"v", [])])
    with pytest.raises(ReplayError, match="'what is this' of prepare does not say where it belongs: drop it"):
        moves_back(stranger, stranger)
    assert moves_away(stranger)[0].outs[0].value is None
    large = letters(replace(RECORD, value=b"x" * (LARGEST_BYTES + 1)))
    with pytest.raises(ReplayError, match=r"training\.raw/2/17 of prepare has no body \(too large\): drop it"):
        moves_back(large, large)


def test_batches_leave_none_out() -> None:
    moves = moves_away(letters(*(replace(RECORD, offset=n) for n in range(7))))
    assert [len(batch) for batch in batches(moves, 3)] == [3, 3, 1]
    assert [move for batch in batches(moves, 3) for move in batch] == moves
    assert list(batches([], 3)) == []


def test_group_and_origins_are_told_apart() -> None:
    assert parted(None) == (None, frozenset())
    assert parted(["prepare"]) == ("prepare", frozenset())
    assert parted(["prepare", "a/1/2", "b/0/0"]) == ("prepare", {"a/1/2", "b/0/0"})
    assert parted(["a/1/2"]) == (None, {"a/1/2"})
    for words, said in ((["prepar"], "no consumer group 'prepar'"), (["prepare", "x"], "'x' is no origin"), (["a/b/c"], "no origin")):
        with pytest.raises(CommandError, match=said):
            parted(words)


def test_counts_by_group_and_reason() -> None:
    known = [*letters(RECORD, group="monitor"), *letters(RECORD, replace(RECORD, offset=1)), *letters(RECORD, reason="other")]
    found = [(row["group"], row["reason"], row["letters"]) for row in counted(known)]
    assert found == [("prepare", "no model", 2), ("prepare", "other", 1), ("monitor", "no model", 1)]
    assert counted([]) == []


def test_bodies_are_cut_and_cannot_command_a_terminal() -> None:
    assert body(b"where is \xff it", 100) == "where is \ufffd it"
    assert body(b"x" * 50, 10) == "x" * 10 + "… (50 bytes in all)"
    assert body("ä".encode() * 10, 10) == "ä" * 10
    assert readable("\x1b]0;owned\x07 a\tb\n\u202e") == "\ufffd]0;owned\ufffd a\tb\n\ufffd"
