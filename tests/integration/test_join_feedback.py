"""`join-feedback` as the process that users run, on a real broker: answers meet what was said of them."""

from __future__ import annotations

import base64
import os
import random
import signal
from collections.abc import Iterator

import msgspec
import pytest

from deploy.scrape import read, scrape
from schemas import codec
from schemas.identity import partition_of
from schemas.topics import BY_NAME, DAY_MS
from streams import kafka
from streams.join import rows
from streams.kafka import Out, Record
from tests.broker import fresh, members, publish, since, until
from tests.ids import IDS
from tests.join_bench import DEAD, FEEDBACK, GROUP, INFERENCES, RAW, Bench, Process
from tests.scraping import Scrape

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def process(own_bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(own_bootstrap, tmp_path_factory.mktemp("join-feedback"))
    try:
        process.start()
        yield process
    finally:
        process.kill()


@pytest.fixture
def bench(own_bootstrap: str, process: Process) -> Bench:
    return Bench(own_bootstrap, process)


def test_it_says_how_it_does(bench) -> None:
    """The metrics of the process as it is run."""
    said = Scrape(bench.process.metrics_port)
    publish(bench.bootstrap, [Out(FEEDBACK, b"k%d" % i, b'{"inference_id": ', []) for i in range(3)])
    until(lambda: (said("tuneloop_dead_letters_total", group="join-feedback", topic=FEEDBACK) or 0) >= 3, 45, "dead letters")
    assert (said("tuneloop_records_consumed_total", topic=FEEDBACK) or 0) >= 3
    assert (said("tuneloop_records_produced_total", topic=DEAD) or 0) >= 3
    until(lambda: said("tuneloop_lag_records", topic=FEEDBACK) == 0, 15, "a lag of 0")
    until(lambda: (said("tuneloop_heartbeat_age_seconds") or 0) < 2, 15, "a sign of life every second")
    assert said("process_resident_memory_bytes")
    seen = scrape({"join-feedback": said.url, "prepare": said.url})
    assert seen.keys() == {"join-feedback"} and (seen["join-feedback"].dead or 0) >= 3
    assert read("gate", said.text()) is None


def test_each_kind_of_feedback_makes_its_kind_of_record(bench) -> None:
    answer = bench.answer(answer="It left yesterday.")
    bench.serve(answer)
    for metric, value in (("demonstration", "It arrives today."), ("preferred", "Today."), ("correct", False)):
        bench.say(answer.inference_id, metric, value)
    bench.say(answer.inference_id, "mood", 2)
    bench.say(answer.inference_id, "rating", 4.5)
    found = {record.record_id.removesuffix(f"-{answer.inference_id}"): record for record in bench.until_joined(4, answer)}
    assert found.keys() == {"sft", "preference", "kto-correct", "kto-rating"}
    assert found["sft"].completion == "It arrives today."
    assert (found["preference"].chosen, found["preference"].rejected) == ("Today.", "It left yesterday.")
    assert (found["kto-correct"].completion, found["kto-correct"].label) == ("It left yesterday.", False)
    assert (found["kto-rating"].completion, found["kto-rating"].label) == ("It left yesterday.", True)
    for record in found.values():
        assert record.messages == answer.messages and record.inference_id == answer.inference_id
        assert record.subject_id == answer.subject_id and record.conversation_id == answer.conversation_id
    for record, event in bench.written():
        envelope, _ = kafka.decode(record)
        assert record.partition == partition_of(event.subject_id, BY_NAME[RAW].partitions)
        assert envelope.correlation_id.startswith(f"{FEEDBACK}/") and record.key == event.record_id.encode()


def test_either_may_come_first(bench) -> None:
    early, late = bench.answer(), bench.answer()
    bench.serve(early)
    bench.say(late.inference_id, "demonstration", "said before the answer")
    bench.until_taken_in(FEEDBACK)
    bench.say(early.inference_id, "demonstration", "said after it")
    bench.serve(late)
    found = {record.inference_id: record.completion for record in bench.until_joined(2, early, late)}
    assert found == {early.inference_id: "said after it", late.inference_id: "said before the answer"}


def test_a_correction_replaces_and_older_feedback_that_comes_late_does_not(bench) -> None:
    answer, now = bench.answer(), codec.now_ms() - 60_000
    bench.serve(answer)
    for text, time_ms in (("first", now), ("second", now + 2), ("in between", now + 1), ("second", now + 3), ("first", now)):
        bench.say(answer.inference_id, "demonstration", text, partition=0, time_ms=time_ms)
    bench.say(answer.inference_id, "correct", True, partition=0)
    until(lambda: True in bench.every(answer), what="what was said last")
    assert bench.every(answer) == ["first", "second", True]


def test_feedback_under_one_id_is_corrected_and_retried(bench) -> None:
    """The same value again is no news however late it comes; another metric under the same id is another opinion."""
    answer, now = bench.answer(answer="refund"), codec.now_ms() - 60_000
    bench.serve(answer)
    words = (("correct", True, 1, "1"), ("correct", False, 2, "2"), ("correct", True, 3, "1"), ("demonstration", "refund", 4, "1"),
             ("correct", True, 5, "2"))  # fmt: skip
    for metric, value, at, identity in words:
        bench.say(answer.inference_id, metric, value, partition=0, feedback_id=identity, said_ms=now + at, author="agent-7")
    until(lambda: len(bench.every(answer)) >= 4, what="what was said last")
    assert bench.every(answer) == [True, False, "refund", True]
    by_kind = {record.kind: record for record in bench.of(answer)}
    assert by_kind["sft"].label is True and by_kind["sft"].author == by_kind["kto"].author == "agent-7"


def test_what_does_not_fit_its_metric_is_a_dead_letter_with_its_reason(bench) -> None:
    early, late = bench.answer(), bench.answer(finish_reason="cancelled")
    bench.say(late.inference_id, "rating", "5")
    bench.serve(early)
    for metric, value in (("correct", "true"), ("correct", 1), ("demonstration", True)):
        bench.say(early.inference_id, metric, value)
    bench.until_taken_in(FEEDBACK, rows.REKEYED)
    bench.serve(late)
    for metric, value in (("mood", "fine"), ("correct", True), ("correct", False)):
        bench.say(late.inference_id, metric, value, partition=0)
    until(lambda: bench.process.alive() and len(bench.letters()) >= 4, what="four letters")
    [record] = bench.until_joined(1, late)
    assert (record.kind, record.label) == ("kto", False), "praise of an answer that was cut off taught nothing"
    reasons = {dict(letter.headers)["__connect.errors.exception.message"] for letter in bench.letters()}
    assert reasons == {
        b"`value`: rating takes a float, got a text", b"`value`: correct takes a boolean, got a text",
        b"`value`: correct takes a boolean, got 1", b"`value`: demonstration takes a text, got True",
    }  # fmt: skip
    assert bench.every(early) == [] and len(bench.letters()) == 4


def test_what_waits_together_teaches_its_newest(bench) -> None:
    answer, now = bench.answer(), codec.now_ms() - 60_000
    for text, time_ms in (("newest", now + 2), ("first", now), ("second", now + 1)):
        bench.say(answer.inference_id, "demonstration", text, partition=0, time_ms=time_ms)
    bench.until_taken_in(FEEDBACK, rows.REKEYED)
    bench.serve(answer)
    bench.until_joined(1, answer)
    assert bench.every(answer) == ["newest"]


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_feedback_of_any_client_is_joined_to_the_last(bench, codec) -> None:
    """Another partitioner, keys and partitions at random, and each compression that Kafka knows."""
    answers = [bench.answer() for _ in range(20)]
    bench.serve(*answers)
    partitions = BY_NAME[FEEDBACK].partitions
    for number, answer in enumerate(answers):
        where = random.randrange(partitions) if number % 2 else None
        bench.say(
            answer.inference_id, "demonstration", f"{codec} {number}", where,
            **{"compression.type": codec, "partitioner": "consistent"},
        )  # fmt: skip
    found = bench.until_joined(len(answers), *answers)
    assert {record.completion for record in found} == {f"{codec} {number}" for number in range(20)}


def test_feedback_as_large_as_kafka_takes_is_kept_and_a_dead_letter_and_the_next_is_joined(bench) -> None:
    """It travels with more headers than it came with, and such as no compression by repetition makes smaller. No broker
    takes the training record that it makes with its answer's words, nor would `prepare`."""
    answer, text = bench.answer(), base64.b64encode(random.randbytes(780_000)).decode()
    bench.say(answer.inference_id, "demonstration", text, **{"message.max.bytes": 1_048_000})
    bench.until_taken_in(FEEDBACK, rows.REKEYED)
    bench.serve(answer)
    [letter] = until(lambda: bench.process.alive() and bench.letters(), what="a letter")
    assert len(text) > 1_039_000 and text.encode() in letter.value
    assert b"a training record of at most" in dict(letter.headers)["__connect.errors.exception.message"]
    bench.say(answer.inference_id, "demonstration", "short")
    [found] = bench.until_joined(1, answer)
    assert found.completion == "short"


def test_malformed_feedback_is_a_dead_letter(bench) -> None:
    wrong = {"inference_id": 7, "metric_name": "correct", "value": True}
    broken, mistyped = b"\xffnot json", msgspec.json.encode(wrong)
    publish(bench.bootstrap, [Out(FEEDBACK, b"k", value, [("mine", b"\x00\xff")]) for value in (broken, mistyped)])
    publish(bench.bootstrap, [Out(FEEDBACK, b"gone", None)])
    until(lambda: bench.process.alive() and bench.letters()[1:], what="two letters")
    letters = bench.letters()
    assert sorted(letter.value for letter in letters) == sorted([broken, mistyped])
    reasons = {letter.value: dict(letter.headers) for letter in letters}
    assert b"$.inference_id" in reasons[mistyped]["__connect.errors.exception.message"]
    assert reasons[broken]["mine"] == b"\x00\xff"


def test_an_id_that_was_not_issued_here_is_a_dead_letter_at_once(bench) -> None:
    for made_up in ("chatcmpl-1", IDS.issue()[:-1] + "x", IDS.issue().replace("chatcmpl-", "resp_")):
        bench.say(made_up, "demonstration", "never")
        bench.serve(bench.answer(inference_id=made_up))

    def refused() -> int:
        assert bench.process.alive()
        reasons = [dict(letter.headers)["__connect.errors.exception.message"] for letter in bench.letters()]
        return sum(b"was not issued here" in reason for reason in reasons)

    until(lambda: refused() == 6, what="six letters")


def test_feedback_on_a_forgotten_answer_teaches_nothing(bench) -> None:
    forgotten, kept = bench.answer(), bench.answer()
    bench.serve(forgotten, kept)
    publish(bench.bootstrap, [Out(INFERENCES, forgotten.inference_id.encode(), None)])
    bench.until_taken_in(INFERENCES)
    bench.say(forgotten.inference_id, "demonstration", "too late", partition=0)
    bench.say(kept.inference_id, "demonstration", "in time", partition=0)
    bench.until_joined(1, kept)
    bench.until_taken_in(FEEDBACK, rows.REKEYED)
    assert bench.of(forgotten) == []


def test_deletions_reach_tables_and_changelogs(bench) -> None:
    """Of an answer, of feedback that waits for it, and of feedback alone, wherever it waits."""
    learnt, never = bench.answer(answer="SECRET"), bench.answer()
    bench.serve(learnt)
    bench.say(learnt.inference_id, "demonstration", "SECRET", partition=1)
    bench.until_joined(1, learnt)
    bench.say(never.inference_id, "demonstration", "SECRET", partition=1)
    withdrawn = [bench.say(IDS.issue(), "demonstration", "SECRET", partition=1) for _ in range(4)]
    kept = bench.say(IDS.issue(), "demonstration", "kept", partition=1)
    bench.until_taken_in(FEEDBACK, rows.REKEYED)
    before = {table: bench.changelog(table) for table in ("answers", "waiting")}
    assert before["answers"][learnt.inference_id.encode()] and len(with_secret(before["waiting"])) == 5
    for inference in (learnt, never):
        bench.delete(INFERENCES, inference.inference_id.encode())
    for key in withdrawn:
        bench.delete(FEEDBACK, key, partition=1)
    bench.until_taken_in(INFERENCES, FEEDBACK, rows.REKEYED)
    for table in ("answers", "waiting"):
        after = bench.changelog(table)
        assert with_secret(after) == [] and with_secret(bench.process.on_disk(table)) == []
        assert all(after[key] is None for key in with_secret(before[table])), "a null value, not silence"
    assert any(kept in value for value in bench.process.on_disk("waiting").values())
    gone = [r.partition for r in since(bench.bootstrap, rows.REKEYED) if r.key == withdrawn[0] and r.value is None]
    assert gone == [0, 1, 2, 3]


def with_secret(table: dict[bytes, bytes | None]) -> list[bytes]:
    return [key for key, value in table.items() if value and b"SECRET" in value]


def test_kill_9_between_answer_and_feedback_loses_neither(bench) -> None:
    """The tables are on disk; what was said while nobody was there is joined afterwards."""
    answered, waited, absent = bench.answer(), bench.answer(), bench.answer()
    bench.serve(answered)
    bench.say(waited.inference_id, "demonstration", "waited")
    bench.until_taken_in(INFERENCES, FEEDBACK, rows.REKEYED)
    bench.process.kill()
    bench.serve(waited, absent)
    bench.say(answered.inference_id, "demonstration", "answered")
    bench.say(absent.inference_id, "demonstration", "absent")
    bench.process.start()
    found = bench.until_joined(3, answered, waited, absent)
    assert {record.completion for record in found} == {"answered", "waited", "absent"}
    assert {record.inference_id for record in found} == {one.inference_id for one in (answered, waited, absent)}


@pytest.mark.long
def test_a_process_that_was_put_to_sleep_in_the_middle_of_it_skips_nothing(bench) -> None:
    """It loses its partitions and gets them back, while it fetches."""
    answer = bench.answer()
    bench.serve(answer)
    bench.until_taken_in(INFERENCES)
    body = msgspec.json.encode({"inference_id": answer.inference_id, "metric_name": "mood", "value": 1})
    ids = [fresh("asleep").encode() for _ in range(6_000)]
    said = [Out(FEEDBACK, one, body, [], number % 4) for number, one in enumerate(ids)]
    publish(bench.bootstrap, said)
    until(lambda: rekeyed(bench, ids), what="the first of them")
    os.kill(bench.process.pid, signal.SIGSTOP)
    until(lambda: members(bench.bootstrap, GROUP) == 0, what="the end of its session")
    publish(bench.bootstrap, said)
    os.kill(bench.process.pid, signal.SIGCONT)
    bench.until_taken_in(FEEDBACK, rows.REKEYED)
    assert rekeyed(bench, ids) == set(ids)


def rekeyed(bench: Bench, ids: list[bytes]) -> set[bytes]:
    return {record.key for record in since(bench.bootstrap, rows.REKEYED) if record.key} & set(ids)


def test_a_lost_disk_is_rebuilt_and_after_a_month_at_rest_nothing_came_too_late(bench) -> None:
    """Rows come back from the changelogs, marks too. What was in time while nobody was there is still joined: the
    clock waits for it."""
    answered, waited, now = bench.answer(), bench.answer(), codec.now_ms() - 60_000
    bench.serve(answered)
    bench.say(answered.inference_id, "demonstration", "before", partition=0, time_ms=now + 1)
    bench.say(waited.inference_id, "demonstration", "waited")
    bench.until_joined(1, answered)
    bench.until_taken_in(INFERENCES, FEEDBACK, rows.REKEYED)
    bench.process.kill()
    bench.process.lose_disk()
    bench.serve(waited)
    bench.say(answered.inference_id, "demonstration", "older", partition=0, time_ms=now)
    idle = msgspec.json.encode({"inference_id": answered.inference_id, "metric_name": "mood", "value": 1})
    publish(bench.bootstrap, [Out(FEEDBACK, b"mood", idle, [], 0)] * 5_000)  # it takes longer than the clock's first tick
    bench.say(answered.inference_id, "preferred", "after", partition=0)
    bench.process.turn(31)
    bench.process.start(turned=True)
    bench.until_joined(3, answered, waited)
    assert bench.every(answered) == ["before", ""] and bench.every(waited) == ["waited"]
    bench.until_taken_in(INFERENCES, FEEDBACK)  # nothing was skipped, so nothing holds up the commits


@pytest.fixture
def turned(bench) -> Bench:
    """With a clock to turn, which stands at today's date again."""
    bench.process.turn(0)
    if not bench.process.turned:
        bench.process.kill()
        bench.process.start(turned=True)
    until(lambda: max(last_clocks(bench)) < codec.now_ms() + DAY_MS, what="today's date")
    bench.until_taken_in(rows.REKEYED)
    return bench


def test_after_thirty_days_feedback_becomes_a_dead_letter_and_answers_leave(turned) -> None:
    answer, missing = turned.answer(), IDS.issue()
    turned.serve(answer)
    body = msgspec.json.encode({"inference_id": missing, "metric_name": "demonstration", "value": "too early"})
    publish(turned.bootstrap, [Out(FEEDBACK, b"mine", body, [("mine", b"\x00\xff"), ("mine", None)], 2)])
    turned.until_taken_in(INFERENCES, FEEDBACK, rows.REKEYED)
    [said] = [record for record in since(turned.bootstrap, FEEDBACK) if record.value == body]
    turned.process.turn(29.5)
    until(lambda: min(last_clocks(turned)) > said.timestamp_ms + 29 * DAY_MS, what="a month's end")
    turned.until_taken_in(rows.REKEYED)
    turned.say(answer.inference_id, "demonstration", "just in time")
    turned.until_joined(1, answer)
    assert [letter for letter in turned.letters() if letter.value == body] == []
    turned.process.turn(31)
    [letter] = until(lambda: [letter for letter in turned.letters() if letter.value == body], what="the dead letter")
    given = dict(letter.headers)
    assert letter.headers[:2] == [("mine", b"\x00\xff"), ("mine", None)] and letter.key == said.origin.encode()
    origin = [given["__connect.errors." + name].decode() for name in ("topic", "partition", "offset")]
    assert origin == [FEEDBACK, "2", str(said.offset)]
    assert given["__connect.errors.exception.message"] == b"no inference with this id within 30 days"
    key = answer.inference_id.encode()
    until(lambda: turned.changelog("answers")[key] is None, what="the answer gone")
    for table in ("answers", "waiting"):
        until(lambda table=table: not any(turned.changelog(table).values()), what=f"nothing left in {table}")
        until(lambda table=table: turned.process.on_disk(table).keys() <= {b"__faust\0offset__"}, what="an empty disk")


def last_clocks(bench: Bench) -> list[int]:
    """What was told last to each partition; 0 where nothing was."""
    told = {r.partition: rows.clock_of(r) or 0 for r in since(bench.bootstrap, rows.REKEYED) if is_clock(r)}
    return [told.get(partition, 0) for partition in range(rows.PARTITIONS)]


def is_clock(record: Record) -> bool:
    return record.value is not None and rows.clock_of(record) is not None
