"""Whose a record is: by its subject or its answer's, never by a word that happens to stand in it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from schemas.identity import subject_of_prompt
from streams.erase.find import owner
from streams.erase.subject import Subject
from streams.join import rows
from streams.kafka import Record
from tests.broker import landed
from tests.ids import answer

ANSWER, OTHER = answer("a"), answer("b")
ASKED = [{"role": "user", "content": "where is it"}]


def record(topic: str, value: bytes | dict[str, Any], key: bytes = b"k", **headers: bytes) -> Record:
    data = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return Record(topic, 0, 7, 1_700_000_000_000, key, data, list(headers.items()))


def owns(subject: Subject, value: bytes | dict[str, Any]) -> bool:
    return subject.owns(record("training.raw", value))


@pytest.mark.parametrize("identity", ["jane", "user", "content", "0", "support"])
def test_a_record_is_of_who_it_names_whatever_else_it_says(identity: str) -> None:
    subject = Subject(identity, [ANSWER])
    about = {"model": "support", "messages": ASKED, "completion": "0"}
    assert owns(subject, about | {"subject_id": identity}) and not owns(subject, about | {"subject_id": "somebody"})
    assert not owns(subject, about), "nobody's, though it has a role, a model, a zero"
    for name in ("user", "safety_identifier", "subjectId"):
        assert owns(subject, about | {name: identity}) and owns(subject, about | {"body": {"x": 1, name: identity}})
    assert owns(subject, about | {"ids": [ANSWER]}) and not owns(subject, about | {"ids": [OTHER]})
    assert not owns(subject, about | {"prompt": identity, "kind": identity})
    assert owns(subject, {"inference_id": ANSWER, "value": "x"}) and not owns(subject, {"inference_id": OTHER, "value": "x"})


def test_who_has_no_id_is_known_by_the_prompt() -> None:
    subject = Subject(subject_of_prompt("where is it"))
    assert owns(subject, {"messages": ASKED}) and owns(subject, {"prompt": "where is it"})
    assert not owns(subject, {"messages": [{"role": "user", "content": "where was it"}]})


def test_what_cannot_be_read_is_theirs_where_their_id_stands_in_it() -> None:
    subject = Subject("jane", [ANSWER])
    assert owns(subject, b'{"subject_id": "jane", "mess') and not owns(subject, b'{"subject_id": "janet", "mess')
    assert owns(subject, b"\xff" + ANSWER.encode()) and not owns(subject, b"\xff" + OTHER.encode())


@pytest.mark.parametrize("identity", ["jane", "user"])
def test_what_the_join_keeps_is_of_whom_it_came_from(identity: str) -> None:
    subject = Subject(identity, [ANSWER])

    def kept(inference: str, who: str) -> bool:
        served = msgspec.json.encode({"inference_id": inference, "subject_id": who, "messages": ASKED})
        value = rows.pack(rows.Answer(1, {}, served))
        topic = "join-feedback-answers-changelog"
        return owner(subject, topic)(record(topic, value, inference.encode()))

    def waiting(inference: str, who: str) -> bool:
        said = record("usage.feedback", {"inference_id": inference, "subject_id": who, "value": "user"})
        value, topic = rows.pack(rows.Waiting(1, said)), "join-feedback-waiting-changelog"
        return owner(subject, topic)(record(topic, value, rows.waiting_key(inference.encode(), said)))

    def under_way(inference: str, who: str) -> bool:
        said = record("usage.feedback", {"inference_id": inference, "subject_id": who, "value": "user"})
        out = rows.rekeyed(said, inference)
        return owner(subject, out.topic)(landed(out))

    for holds in (kept, waiting, under_way):
        assert holds(OTHER, identity) and holds(ANSWER, "") and not holds(OTHER, "") and not holds(OTHER, "somebody")


def test_the_clock_of_the_join_is_nobodys() -> None:
    said = rows.clock(0, 5)
    assert not owner(Subject("0"), said.topic)(landed(said))
