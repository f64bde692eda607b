"""The AsyncAPI document: whole, true to the declarations, and valid by the specification's own schema."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest

from schemas import asyncapi, generate
from schemas.codec import ContractError, decode, encode
from schemas.events import EVENTS
from schemas.evolution import PUBLISHED, newest_versions, published
from schemas.topics import CONSUMER_GROUPS, TOPIC_OF, all_topics
from streams.dead_letters import dead_letter
from streams.kafka import Record
from tests import node
from tests.contract.examples import EXAMPLES

Document = dict[str, Any]
DOCUMENT: Document = json.loads((PUBLISHED / "asyncapi.json").read_text())
NO_EVENTS = ("DeadLetter", "Tombstone")
every_event = pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)


def objects(part: Any, path: str = "#") -> Iterator[tuple[str, Document]]:
    """Every object of a document with its path."""
    if isinstance(part, dict):
        yield path, part
    inner = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for name, value in inner:
        yield from objects(value, f"{path}/{name}")


def named(document: Document, pointer: str) -> Any:
    """What a `#/...` pointer names. Raises LookupError where it names nothing."""
    place, *steps = pointer.split("/")
    part: Any = document if place == "#" and steps else {}
    for step in steps or ["?"]:
        part = part[step.replace("~1", "/").replace("~0", "~")]
    return part


def dangling(document: Document) -> Iterator[str]:
    for path, part in objects(document):
        if "$ref" in part:
            if len(part) > 1:
                yield f"{path}: what stands beside a $ref is ignored"
            try:
                named(document, part["$ref"])
            except LookupError:
                yield f"{path}: {part['$ref']} names nothing"


def miscounted(document: Document) -> Iterator[str]:
    """Topics and events that are not there exactly once."""
    addresses = Counter(channel["address"] for channel in document["channels"].values())
    said = Counter(name for channel in document["channels"].values() for name in channel["messages"])
    for wanted, found in ((Counter(t.name for t in all_topics()), addresses), (Counter(e.__name__ for e in EVENTS), said)):
        yield from (f"{name}: missing" for name in wanted - found)
        yield from (f"{name}: too many" for name in found - wanted if name not in NO_EVENTS)
    defined = set(document["components"]["messages"])
    yield from (f"{name}: not defined, or never said" for name in defined ^ set(said))


def mispronounced(document: Document) -> Iterator[str]:
    """Channels whose messages, writers or readers are not the declared ones."""
    operations = dict(document["operations"])
    for topic in all_topics():
        messages = document["channels"].get(topic.name, {}).get("messages", {})
        wanted = {e.__name__ for e in topic.events} or {"DeadLetter"}
        if set(messages) != wanted | ({"Tombstone"} if topic.personal else set()):
            yield f"{topic.name}: carries {sorted(messages)}"
        for action, actors in (("send", topic.producers), ("receive", topic.consumers)):
            for actor in actors:
                operation = operations.pop(asyncapi.operation_name(actor, action, topic.name), {})
                if (operation.get("action"), operation.get("channel", {}).get("$ref")) != (action, f"#/channels/{topic.name}"):
                    yield f"{topic.name}: no {action} by {actor}"
    yield from (f"{name}: nobody declared it" for name in operations)


def problems(document: Document) -> list[str]:
    return [*dangling(document), *miscounted(document), *mispronounced(document)]


def broken(change: Callable[[Document], Any]) -> Document:
    document = copy.deepcopy(DOCUMENT)
    change(document)
    return document


def test_the_document_is_whole() -> None:
    assert problems(DOCUMENT) == []
    assert DOCUMENT["asyncapi"] == "3.0.0"


BROKEN: dict[str, tuple[Callable[[Document], Any], str]] = {
    "a schema that is gone": (lambda d: d["components"]["schemas"].pop("ShardSet"), "#/components/schemas/ShardSet names nothing"),
    "a pointer to elsewhere": (lambda d: d["operations"]["gate.send.models.verdicts"]["channel"].update({"$ref": "channels/x"}), "channels/x names nothing"),
    "words beside a $ref": (lambda d: d["channels"]["training.raw"]["messages"]["Tombstone"].update(title="x"), "beside a $ref"),
    "a channel that is gone": (lambda d: d["channels"].pop("dead.gate"), "dead.gate: missing"),
    "a topic twice": (lambda d: d["channels"].update({"again": d["channels"]["monitor.drift"]}), "monitor.drift: too many"),
    "an event on two topics": (lambda d: d["channels"]["monitor.drift"]["messages"].update(JobEnded={"$ref": "#/components/messages/JobEnded"}), "JobEnded: too many"),
    "an event of no topic": (lambda d: d["channels"]["subjects.erasures"]["messages"].clear(), "ErasureRequested: missing"),
    "a message that nobody says": (lambda d: d["components"]["messages"].update(Extra={}), "Extra: not defined, or never said"),
    "no tombstone": (lambda d: d["channels"]["usage.feedback"]["messages"].pop("Tombstone"), "usage.feedback: carries ['FeedbackGiven']"),
    "a writer less": (lambda d: d["operations"].pop("conduct.send.training.jobs"), "training.jobs: no send by conduct"),
    "a writer that reads": (lambda d: d["operations"]["work.receive.training.jobs"].update(action="send"), "no receive by work"),
    "a reader too many": (lambda d: d["operations"].update({"x.receive.y": {}}), "x.receive.y: nobody declared it"),
}  # fmt: skip


@pytest.mark.parametrize("change", BROKEN)
def test_a_broken_document_is_refused(change: str) -> None:
    spoil, said = BROKEN[change]
    assert any(said in line for line in problems(broken(spoil)))


def validator(*path: str) -> jsonschema.Draft7Validator:
    """Of a schema inside the document; AsyncAPI's own dialect of schemas is a superset of draft 7."""
    return jsonschema.Draft7Validator({"allOf": [{"$ref": "#/" + "/".join(path)}], "components": DOCUMENT["components"]})


def text_of(headers: list[tuple[str, Any]]) -> dict[str, str]:
    return {name: value.decode() for name, value in headers}


@every_event
def test_the_payload_takes_the_example_and_refuses_a_broken_one(event) -> None:
    payload = validator("components", "messages", event.__name__, "payload")
    body = json.loads(encode(EXAMPLES[event], source="test").value)
    payload.validate(body)
    required = DOCUMENT["components"]["schemas"][event.__name__]["required"]
    for name in required:
        assert not payload.is_valid({key: value for key, value in body.items() if key != name})
        assert not payload.is_valid({**body, name: [None]})


@every_event
def test_the_payload_is_the_newest_published_schema(event) -> None:
    newest = json.dumps(published(event)[newest_versions()[event.__name__]]["$defs"])
    for name, schema in json.loads(newest.replace("#/$defs/", "#/components/schemas/")).items():
        assert DOCUMENT["components"]["schemas"][name] == schema


@every_event
def test_headers_are_those_of_the_codec(event) -> None:
    name, headerless = event.__name__, TOPIC_OF[event].headerless
    headers = validator("components", "messages", name, "headers")
    attributes = dict.fromkeys(("subject", "correlation_id", "causation_id", "traceparent"), "x")
    encoded = encode(EXAMPLES[event], source="test", **attributes)
    written = text_of(encoded.headers)
    headers.validate(written)
    assert written.keys() == DOCUMENT["components"]["schemas"]["CloudEventsHeaders"]["properties"].keys()
    properties = DOCUMENT["components"]["messages"][name]["headers"]["properties"]
    assert properties["ce_dataschema"]["examples"] == [written["ce_dataschema"]]
    assert not headers.is_valid({**written, "ce_type": "MoonLanded"})
    assert headers.is_valid({}) == headerless
    where = {"partition": 0, "offset": 0, "timestamp_ms": 0}
    if headerless:
        decode(TOPIC_OF[event].name, encoded.value, [], **where)
    else:
        with pytest.raises(ContractError, match="ce_type: missing"):
            decode(TOPIC_OF[event].name, encoded.value, [], **where)


def test_the_headers_of_a_dead_letter_are_those_that_are_written() -> None:
    refused = Record("training.raw", 1, 2, 3, b"key", b"{", [("x-trace", b"abc")])
    written = text_of(dead_letter("prepare", refused, "prompt: missing").headers)
    headers = validator("components", "messages", "DeadLetter", "headers")
    headers.validate(written)
    assert written.keys() == {"x-trace", *asyncapi.LETTER_HEADERS}
    assert not headers.is_valid({"x-trace": "abc"})


@pytest.mark.parametrize("topic", all_topics(), ids=lambda topic: topic.name)
def test_the_binding_is_what_the_topic_is_created_with(topic) -> None:
    binding = DOCUMENT["channels"][topic.name]["bindings"]["kafka"]
    said = {name: ",".join(value) if isinstance(value, list) else str(value) for name, value in binding["topicConfiguration"].items()}
    assert (binding["topic"], binding["partitions"], said) == (topic.name, topic.partitions, topic.config())
    for name in DOCUMENT["channels"][topic.name]["messages"]:
        key = DOCUMENT["components"]["messages"][name]["bindings"]["kafka"]["key"]
        assert key["type"] == "string" and (name == "Tombstone" or key["description"] == topic.key)


def test_the_readers_that_are_groups_name_their_group() -> None:
    groups = {
        operation["bindings"]["kafka"]["groupId"]["const"]
        for operation in DOCUMENT["operations"].values()
        if operation["action"] == "receive" and "bindings" in operation
    }
    assert groups == set(CONSUMER_GROUPS)


def test_the_document_names_the_version_that_is_published_with_it() -> None:
    text = generate.asyncapi_text({**newest_versions(), "JobEnded": 7})
    headers = json.loads(text)["components"]["messages"]["JobEnded"]["headers"]
    assert headers["properties"]["ce_dataschema"]["examples"] == ["schemas/published/JobEnded/7.json"]


@pytest.fixture(scope="module")
def official() -> jsonschema.Draft7Validator:
    """The specification's own schema of its documents."""
    folder = node.packages("@asyncapi/specs", "6.11.1")
    schema = json.loads((folder / "node_modules/@asyncapi/specs/schemas/3.0.0-without-$id.json").read_text())
    return jsonschema.Draft7Validator(schema)


def test_the_specification_takes_the_document(official) -> None:
    assert [f"{error.json_path}: {error.message[:200]}" for error in official.iter_errors(DOCUMENT)] == []


NOT_ASYNCAPI: dict[str, Callable[[Document], Any]] = {
    "no title": lambda d: d["info"].pop("title"),
    "an action of AsyncAPI 2": lambda d: d["operations"]["gate.send.models.verdicts"].update(action="publish"),
    "an unknown field": lambda d: d["channels"]["training.raw"].update(retention=1),
    "a policy that Kafka has not": lambda d: d["channels"]["training.raw"]["bindings"]["kafka"]["topicConfiguration"].update({"cleanup.policy": ["shred"]}),
    "no schema": lambda d: d["components"]["schemas"]["JobEnded"].update(type="record"),
}  # fmt: skip


@pytest.mark.parametrize("change", NOT_ASYNCAPI)
def test_the_specification_refuses_another(official, change: str) -> None:
    assert not official.is_valid(broken(NOT_ASYNCAPI[change]))
