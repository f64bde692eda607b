"""The contract as one AsyncAPI 3.0 document, for the tools and programs of others.

Channels are the topics (dead letters too), messages the events under their CloudEvents headers, operations say who
writes and who reads. Reads: the declarations (`schemas.events`, `schemas.topics`). Pure: `schemas.generate` writes
the text to schemas/published/asyncapi.json.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import msgspec

from schemas.events import EVENTS
from schemas.topics import CONSUMER_GROUPS, TOPIC_OF, Topic, all_topics

Object = dict[str, Any]

ASYNCAPI = "3.0.0"
KAFKA_BINDING = "0.5.0"
# What CloudEvents 1.0 demands of every event; `schemas.codec` always writes all but the four about the cause.
REQUIRED_HEADERS = ("ce_specversion", "ce_id", "ce_type", "ce_source")
_HEADERS: dict[str, str] = {
    "ce_specversion": "The version of CloudEvents: 1.0.",
    "ce_id": "What this event is called; the same again on a replay.",
    "ce_type": "The event's name; one of the channel's.",
    "ce_source": "Who says it, such as `tuneloop/gate`.",
    "ce_time": "When it happened: RFC 3339 with an offset. The record's timestamp counts without it, and where it is "
    "over an hour ahead of that; applications date back 30 days at most.",
    "ce_dataschema": "The JSON Schema that the body was written under.",
    "content-type": "application/json.",
    "ce_subject": "What it is about: model@version, shard, job. Never a person.",
    "ce_correlationid": "What set the chain of events off, such as a drift.",
    "ce_causationid": "The `ce_id` of the event that this one answers.",
    "ce_traceparent": "W3C Trace Context.",
}
_LETTER_HEADERS: dict[str, str] = {
    "topic": "Where the record stood.",
    "partition": "Where the record stood, as decimal digits.",
    "offset": "Where the record stood, as decimal digits.",
    "connector.name": "The consumer group that refused it.",
    "stage": "VALUE_CONVERTER.",
    "exception.class.name": "What kind of refusal.",
    "exception.message": "Why, with the field's path.",
}
_ORIGINAL: dict[str, str] = {
    "tuneloop.original.key": "The record's own key, as it was; missing where it had none.",
    "tuneloop.original.timestamp": "The record's own time, Unix milliseconds as decimal digits.",
}
LETTER_HEADERS = (*(f"__connect.errors.{name}" for name in _LETTER_HEADERS), *_ORIGINAL)
_DEAD_LETTER, _TOMBSTONE = "DeadLetter", "Tombstone"
_HEADERS_SCHEMA, _LETTER_SCHEMA = "CloudEventsHeaders", "DeadLetterHeaders"
_DESCRIPTION = (
    "Every event of Tuneloop on Kafka: JSON under CloudEvents 1.0 headers in binary mode. Unknown fields pass; a "
    "missing or mistyped one makes the record a dead letter of the consumer that met it. Integers are written without "
    "a fraction: 3, not 3.0. Where headers are not required, plain JSON from any Kafka client will do: `ce_id` is then "
    "topic/partition/offset and `ce_time` the record's timestamp."
)


def document(release: str, versions: Mapping[str, int]) -> Object:
    """The whole document; `versions` is the newest published version of each event's schema, by name."""
    return {
        "asyncapi": ASYNCAPI,
        "info": {
            "title": "Tuneloop", "version": release, "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"kafka": _server()},
        "channels": {topic.name: _channel(topic) for topic in all_topics()},
        "operations": {name: operation for topic in all_topics() for name, operation in _operations(topic)},
        "components": {
            "schemas": _schemas(),
            "messages": _messages(versions),
            "correlationIds": {"chain": {"location": "$message.header#/ce_correlationid"}},
        },
    }


def operation_name(actor: str, action: str, topic: str) -> str:
    """`conduct.send.training.jobs`: the operation by which an actor writes (send) or reads (receive) a topic."""
    return f"{actor.replace(' ', '-')}.{action}.{topic}"


def _ref(*path: str) -> Object:
    return {"$ref": "#/" + "/".join(part.replace("~", "~0").replace("/", "~1") for part in path)}


def _server() -> Object:
    bootstrap = {"description": "HOST:PORT of your Kafka, or of the one that `tuneloop up` starts and prints."}
    return {"host": "{bootstrap}", "protocol": "kafka", "variables": {"bootstrap": bootstrap}}


def _channel(topic: Topic) -> Object:
    names = [event.__name__ for event in topic.events] or [_DEAD_LETTER]
    names += [_TOMBSTONE] if topic.personal else []
    said = {name: value for name, value in topic.config().items() if name != "cleanup.policy"}
    config: Object = {name: int(value) if value.lstrip("-").isdigit() else value for name, value in said.items()}
    config["cleanup.policy"] = topic.cleanup.split(",")
    return {
        "address": topic.name,
        "description": _channel_description(topic),
        "messages": {name: _ref("components", "messages", name) for name in names},
        "bindings": {
            "kafka": {
                "topic": topic.name, "partitions": topic.partitions, "topicConfiguration": config,
                "bindingVersion": KAFKA_BINDING,
            }
        },
    }


def _channel_description(topic: Topic) -> str:
    placed = (
        "partition: murmur2 of the key, as the Java client and librdkafka's `murmur2_random` have it"
        if topic.partition_by == "key"
        else f"partition: set by {topic.partition_by} where Tuneloop writes, any for other writers"
    )
    lines = [f"Key: {topic.key}; {placed}."]
    if topic.transactional:
        lines.append("Written in transactions: read it with `isolation.level=read_committed`.")
    if topic.personal:
        lines.append("Holds a person's words: a null value under a record's key deletes that record.")
    if topic.headerless:
        lines.append("Plain JSON without headers is taken.")
    return " ".join(lines)


def _operations(topic: Topic) -> list[tuple[str, Object]]:
    said = [(actor, "send", "writes") for actor in topic.producers]
    said += [(actor, "receive", "reads") for actor in topic.consumers]
    return [
        (
            operation_name(actor, action, topic.name),
            {
                "action": action,
                "summary": f"`{actor}` {does} {topic.name}.",
                "channel": _ref("channels", topic.name),
                "tags": [{"name": actor}],
                **({"bindings": _group(actor)} if action == "receive" and actor in CONSUMER_GROUPS else {}),
            },
        )
        for actor, action, does in said
    ]


def _group(name: str) -> Object:
    return {"kafka": {"groupId": {"type": "string", "const": name}, "bindingVersion": KAFKA_BINDING}}


def _schemas() -> Object:
    """The body of every event and of what it nests, and the headers, by name."""
    _, bodies = msgspec.json.schema_components(EVENTS, ref_template="#/components/schemas/{name}")
    letter = {f"__connect.errors.{name}": _text(said) for name, said in _LETTER_HEADERS.items()}
    return {
        **bodies,
        _HEADERS_SCHEMA: {"type": "object", "properties": {name: _text(said) for name, said in _HEADERS.items()}},
        _LETTER_SCHEMA: {
            "type": "object", "required": list(letter),
            "properties": {**letter, **{name: _text(said) for name, said in _ORIGINAL.items()}},
        },
    }


def _text(description: str) -> Object:
    return {"type": "string", "description": description}


def _messages(versions: Mapping[str, int]) -> Object:
    events = {event.__name__: _message(event, versions[event.__name__]) for event in EVENTS}
    return {**events, _DEAD_LETTER: _dead_letter(), _TOMBSTONE: _tombstone()}


def _message(event: type[msgspec.Struct], version: int) -> Object:
    name, topic = event.__name__, TOPIC_OF[event]
    schema = f"schemas/published/{name}/{version}.json"
    return {
        "name": name,
        "title": name,
        "summary": inspect.getdoc(event),
        "contentType": "application/json",
        "headers": {
            "type": "object",
            "allOf": [_ref("components", "schemas", _HEADERS_SCHEMA)],
            "properties": {"ce_type": {"const": name}, "ce_dataschema": {"examples": [schema]}},
            **({} if topic.headerless else {"required": list(REQUIRED_HEADERS)}),
        },
        "payload": _ref("components", "schemas", name),
        "correlationId": _ref("components", "correlationIds", "chain"),
        "bindings": _key(topic.key),
    }


def _dead_letter() -> Object:
    return {
        "name": _DEAD_LETTER,
        "title": _DEAD_LETTER,
        "summary": "A record that broke the contract: its bytes as they came, the reason in headers of its own.",
        "contentType": "application/octet-stream",
        "headers": _ref("components", "schemas", _LETTER_SCHEMA),
        "payload": {"description": "Whatever was refused."},
        "bindings": _key("origin (topic/partition/offset)"),
    }


def _tombstone() -> Object:
    return {
        "name": _TOMBSTONE,
        "title": _TOMBSTONE,
        "summary": "Kafka's null value: the record of this key is deleted. Every reader takes it.",
        "payload": {"type": "null"},
        "bindings": _key("the key of the record to delete"),
    }


def _key(description: str) -> Object:
    return {"kafka": {"key": _text(description), "bindingVersion": KAFKA_BINDING}}
