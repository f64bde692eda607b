"""Every event, in turn, held to the contract: headers, round trip, refusals with the field's path, schema, row."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import msgspec
import pytest

from schemas import codec
from schemas.codec import ContractError, decode, encode, key_of, topic_of
from schemas.events import EVENTS
from schemas.evolution import PUBLISHED, json_schema, published
from schemas.landing import META, arrow_table, columns, create_table, landing_sql, table_name
from schemas.topics import TOPIC_OF, TOPICS
from streams.kafka import Record
from tests.contract.examples import EXAMPLES

Event = type[msgspec.Struct]
every_event = pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
HEADERLESS = {"training.raw", "usage.feedback"}
WRONG: dict[str, Any] = {"string": 5, "integer": "5", "number": "5", "boolean": "yes", "object": [], "array": {}}


def body(event: Event) -> dict[str, Any]:
    return json.loads(encode(EXAMPLES[event], source="test").value)


def take(event: Event, content: Any, headers: Any = None, topic: str | None = None) -> tuple[codec.Envelope, Any]:
    """`content` as a record of the event's topic, under `headers` or, by default, its type alone."""
    value = content if isinstance(content, bytes) else json.dumps(content).encode()
    given = [("ce_type", event.__name__.encode())] if headers is None else headers
    where = {"partition": 3, "offset": 77, "timestamp_ms": 1_763_700_000_123}
    return decode(topic or TOPIC_OF[event].name, value, given, **where)


def fields_of(event: Event) -> list[Any]:
    return list(msgspec.inspect.type_info(event).fields)  # type: ignore[attr-defined]


def properties(event: Event) -> dict[str, Any]:
    schema = json_schema(event)
    return schema["$defs"][event.__name__]["properties"]


def test_no_event_lacks_an_example_and_no_example_an_event() -> None:
    assert set(EXAMPLES) == set(EVENTS)
    assert len(set(EVENTS)) == len(EVENTS)


@every_event
def test_an_example_fills_what_is_optional_too(event: Event) -> None:
    filled = [field.name for field in fields_of(event) if getattr(EXAMPLES[event], field.name) not in ("", [], None)]
    assert len(filled) >= 2 / 3 * len(fields_of(event)), "an example of empty fields shows nothing"


@every_event
def test_round_trip_with_every_attribute(event: Event) -> None:
    attributes = {"subject": "support@2", "correlation_id": "c", "causation_id": "d", "traceparent": "00-1-2-01"}
    encoded = encode(EXAMPLES[event], source="gate", event_id="e1", time_ms=1_763_700_000_123, **attributes)
    envelope, again = take(event, encoded.value, encoded.headers)
    assert (envelope, again) == (encoded.envelope, EXAMPLES[event])
    assert dict(encoded.headers) == {
        "ce_specversion": b"1.0", "ce_id": b"e1", "ce_type": event.__name__.encode(), "ce_source": b"tuneloop/gate",
        "ce_time": b"2025-11-21T04:40:00.123Z", "ce_subject": b"support@2", "ce_correlationid": b"c",
        "ce_causationid": b"d", "ce_traceparent": b"00-1-2-01", "content-type": b"application/json",
        "ce_dataschema": f"schemas/published/{event.__name__}/{max(published(event))}.json".encode(),
    }  # fmt: skip


@every_event
def test_attributes_that_cloudevents_requires_are_always_there(event: Event) -> None:
    headers = dict(encode(EXAMPLES[event], source="work").headers)
    assert {"ce_specversion", "ce_id", "ce_type", "ce_source", "ce_time", "ce_dataschema", "content-type"} <= set(headers)
    assert all(headers.values()), "CloudEvents has no empty attributes"


@every_event
def test_dataschema_names_the_newest_published_schema(event: Event) -> None:
    name = dict(encode(EXAMPLES[event], source="work").headers)["ce_dataschema"].decode()
    assert PUBLISHED.parents[1] / name == PUBLISHED / event.__name__ / f"{max(published(event))}.json"


@every_event
def test_an_unknown_field_passes(event: Event) -> None:
    _, again = take(event, {**body(event), "field_of_tomorrow": {"deep": [1, None]}})
    assert again == EXAMPLES[event]


@every_event
def test_each_required_field_is_missed_by_name(event: Event) -> None:
    required = [field.encode_name for field in fields_of(event) if field.required]
    assert required
    for name in required:
        content = body(event)
        del content[name]
        with pytest.raises(ContractError, match=rf"^{event.__name__}: .*`{name}`"):
            take(event, content)


@every_event
def test_each_mistyped_field_is_named_by_its_path(event: Event) -> None:
    for name, schema in properties(event).items():
        wrong = WRONG.get(schema.get("type"), {"$ref": "x"} if name == "value" else "text")
        with pytest.raises(ContractError, match=rf"^{event.__name__}: .*`\$\.{name}(\.\w+)?`"):
            take(event, {**body(event), name: wrong})


@every_event
def test_a_type_of_another_topic_is_refused(event: Event) -> None:
    for topic in TOPICS:
        if topic is not TOPIC_OF[event]:
            with pytest.raises(ContractError, match=f"ce_type: '{event.__name__}' is not an event of topic {topic.name}"):
                take(event, body(event), topic=topic.name)


@every_event
def test_records_without_headers_are_taken_on_two_topics_only(event: Event) -> None:
    topic = TOPIC_OF[event]
    assert topic.headerless == (topic.name in HEADERLESS)
    for headers in ([], [("content-type", b"application/json"), ("x-trace", None)]):
        if topic.headerless:
            envelope, again = take(event, body(event), headers)
            assert again == EXAMPLES[event]
            assert (envelope.id, envelope.time_ms) == (f"{topic.name}/3/77", 1_763_700_000_123)
        else:
            with pytest.raises(ContractError, match="ce_type: missing"):
                take(event, body(event), headers)


@every_event
def test_whatever_the_bytes_only_a_contract_error_comes_out(event: Event) -> None:
    deep = json.dumps({**body(event), "x": 0}).encode()[:-2] + b"[" * 100_000
    for value in (b"", b"null", b"[]", b"{", b'"\xff"', b"\xef\xbb\xbf{}", b'{"model":"\\ud800"}', b"NaN", deep):
        with pytest.raises(ContractError, match=f"^{event.__name__}: "):
            take(event, value)
    kind = ("ce_type", event.__name__.encode())
    beyond = (b"9999-12-31T23:59:59-05:00", b"0001-01-01T00:00:00+05:00")  # no year of four digits in UTC
    for text in (b"yesterday", b"\xff", b"2026-11-21T10:00:00", b"2026-11-21", b"0001-01-01T00:00:00", b"9" * 5000, *beyond):
        with pytest.raises(ContractError, match="ce_time"):
            take(event, body(event), [kind, ("ce_time", text)])


@every_event
def test_an_event_has_one_topic_a_key_and_a_table(event: Event) -> None:
    assert [topic.name for topic in TOPICS if event in topic.events] == [topic_of(EXAMPLES[event])]
    key = key_of(EXAMPLES[event], encode(EXAMPLES[event], source="test").envelope)
    assert key and key == key.strip()
    assert create_table(event) in landing_sql()


def test_every_event_has_a_key_rule_and_a_type_without_one_is_found() -> None:
    class Unruled(msgspec.Struct):
        model: str

    assert codec.unkeyed() == []
    assert codec.unkeyed([Unruled]) == ["Unruled"]


@every_event
def test_a_row_of_the_landing_table_says_what_the_event_says(event: Event) -> None:
    encoded = encode(EXAMPLES[event], source="test", subject="s", time_ms=1_763_700_000_123)
    record = Record(topic_of(EXAMPLES[event]), 3, 77, 0, None, encoded.value, [])
    table = arrow_table(event, [(encoded.envelope, EXAMPLES[event], record)])
    sent = [column for column in columns(event) if column.name != "_landed_at"]
    assert [(field.name, field.type) for field in table.schema] == [(column.name, column.arrow) for column in sent]
    (row,) = table.to_pylist()
    for column in sent[: -(len(META) - 1)]:
        plain = msgspec.to_builtins(getattr(EXAMPLES[event], column.name))
        assert (json.loads(row[column.name]) if column.as_json else row[column.name]) == plain
    assert (row["_partition"], row["_offset"], row["ce_id"]) == (3, 77, encoded.envelope.id)
    assert int(row["ts"].timestamp() * 1000) == 1_763_700_000_123
    assert f"`{sent[0].name}`" in create_table(event) and table_name(event) in create_table(event)


@every_event
def test_json_schema_takes_the_example_and_refuses_a_broken_one(event: Event) -> None:
    for schema in (json_schema(event), *published(event).values()):
        validator = jsonschema.Draft202012Validator(schema)
        validator.check_schema(schema)
        validator.validate(body(event))
        assert not validator.is_valid({name: value for name, value in body(event).items() if name != first(event)})


def first(event: Event) -> str:
    return next(field.encode_name for field in fields_of(event) if field.required)


def test_an_unheard_of_type_is_refused_and_so_is_a_tombstone_without_a_topic() -> None:
    with pytest.raises(ContractError, match="'MoonLanded' is not an event"):
        decode("training.raw", b"{}", [("ce_type", b"MoonLanded")], partition=0, offset=0, timestamp_ms=0)
    with pytest.raises(ContractError, match="missing"):
        decode("anything.else", b"{}", None, partition=0, offset=0, timestamp_ms=0)
