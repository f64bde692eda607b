"""Between events and Kafka records: JSON bodies under CloudEvents 1.0 headers (binary mode).

`encode` makes a record's value and headers; `decode` takes them back into a typed event and its envelope.
What cannot be decoded is a `ContractError` that names the field; nothing else is raised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

from schemas import events
from schemas.evolution import newest_versions
from schemas.identity import uuid7_hex
from schemas.topics import BY_NAME, CONSUMER_GROUPS, CREATED_AHEAD_MS, DAY_MS, TOPIC_OF

Headers = list[tuple[str, bytes]]
# How far a record may date itself from its own Kafka timestamp.
MOST_AHEAD_MS, MOST_BACK_MS = CREATED_AHEAD_MS, 30 * DAY_MS
# Our own processes pass on times that were bounded when they first came in; `tuneloop` is who imports.
_MAY_CORRECT = frozenset({"tuneloop", "serve", *CONSUMER_GROUPS})


class ContractError(ValueError):
    """A record breaks the contract; the message says which type, field and what was expected."""


# Structs, not dataclasses: a frozen dataclass takes five times as long to make, and these are made per record.
class Envelope(msgspec.Struct, frozen=True, gc=False):
    """Who said it, when, about what, and because of what: a record's CloudEvents attributes.

    `time_ms` is Unix time in milliseconds, within `bounded_time`; of feedback that dates itself it is its `said_ms`.
    `subject` is an entity (model@version, shard, job), never a person.
    """

    id: str
    type: str
    source: str
    time_ms: int
    subject: str = ""
    correlation_id: str = ""
    causation_id: str = ""
    traceparent: str = ""


class Encoded(msgspec.Struct, frozen=True, gc=False):
    """A record's value and headers, ready to be produced."""

    value: bytes
    headers: Headers
    envelope: Envelope


# Of one event, and of the headers of one that we read. What a broker takes may be larger: its limit is on what is
# compressed, and it has none on headers, which go from event to event and into caches.
MOST_BYTES, MOST_HEADER_BYTES = 4 << 20, 4 << 10

_encoder = msgspec.json.Encoder()
_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    name: msgspec.json.Decoder(event) for name, event in events.BY_NAME.items()
}
# The headers that every event of a type has; with the newest schema, which is what we write under.
_fixed_headers: dict[str, Headers] = {
    name: [
        ("ce_specversion", b"1.0"), ("ce_type", name.encode()), ("content-type", b"application/json"),
        ("ce_dataschema", f"schemas/published/{name}/{version}.json".encode()),
    ]
    for name, version in newest_versions().items()
}  # fmt: skip


def iso_time(time_ms: int) -> str:
    seconds, rest_ms = divmod(time_ms, 1000)
    return f"{_second_text(seconds)}.{rest_ms:03d}Z"


@lru_cache(maxsize=64)
def _second_text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


@lru_cache(maxsize=64)
def _second_ms(text: bytes) -> int:
    """Unix time in ms of a second as `iso_time` writes it, without its zone."""
    return int(datetime.fromisoformat(text.decode() + "+00:00").timestamp()) * 1000


def _parse_time(raw: bytes) -> int:
    try:
        rest_ms = raw[20:23]
        if len(raw) == 24 and raw[19] == ord(".") and raw[23] == ord("Z") and rest_ms.isdigit():  # as we write it
            return _second_ms(raw[:19]) + int(rest_ms)
        moment = datetime.fromisoformat(raw.decode())
        if moment.tzinfo is None:  # would be read in this machine's own zone
            raise ValueError("no offset")
        time_ms = int(moment.timestamp() * 1000)
        iso_time(time_ms)  # raises for what is no year of four digits in UTC, and could not be passed on
        return time_ms
    except (ValueError, OverflowError) as error:
        text = raw.decode(errors="replace")
        raise ContractError(f"header ce_time: expected an RFC 3339 time, got {text!r}") from error


def may_correct(source: str) -> bool:
    """Whether this source (without `tuneloop/`) may date what it says back further than MOST_BACK_MS."""
    return source in _MAY_CORRECT


def bounded_time(said_ms: int, timestamp_ms: int, source: str) -> int:
    """When a record counts as said: as it says, within bounds around its own Kafka timestamp.

    What lies too far ahead counts as said at the timestamp: otherwise no later word could ever replace it. The broker
    keeps `timestamp_ms` within an hour of its own clock (`schemas.topics`); -1, "none", makes a record the oldest.
    """
    if said_ms > timestamp_ms + MOST_AHEAD_MS:
        return timestamp_ms
    if said_ms < timestamp_ms - MOST_BACK_MS and not may_correct(source):
        return timestamp_ms - MOST_BACK_MS
    return said_ms


def now_ms() -> int:
    return int(time.time() * 1000)


def encode(
    event: msgspec.Struct,
    *,
    source: str,
    subject: str = "",
    correlation_id: str = "",
    causation_id: str = "",
    traceparent: str = "",
    event_id: str | None = None,
    time_ms: int | None = None,
) -> Encoded:
    """Value and headers of one event. `event_id` is given where a replay must repeat it.

    Raises `ContractError` for an event whose schema was never published.
    """
    kind = type(event).__name__
    if kind not in _fixed_headers:
        raise ContractError(f"{kind}: no schema of it was published; run `python -m schemas.generate`")
    if time_ms is None:
        time_ms = now_ms()
    envelope = Envelope(
        id=event_id or uuid7_hex(), type=kind, source=source, time_ms=time_ms,
        subject=subject, correlation_id=correlation_id, causation_id=causation_id, traceparent=traceparent,
    )
    return Encoded(_encoder.encode(event), _headers(envelope), envelope)


def _headers(envelope: Envelope) -> Headers:
    headers = [
        ("ce_id", envelope.id.encode()),
        *_fixed_headers[envelope.type],
        ("ce_source", f"tuneloop/{envelope.source}".encode()),
        ("ce_time", iso_time(envelope.time_ms).encode()),
    ]
    if envelope.subject:
        headers.append(("ce_subject", envelope.subject.encode()))
    if envelope.correlation_id:
        headers.append(("ce_correlationid", envelope.correlation_id.encode()))
    if envelope.causation_id:
        headers.append(("ce_causationid", envelope.causation_id.encode()))
    if envelope.traceparent:
        headers.append(("ce_traceparent", envelope.traceparent.encode()))
    return headers


def decode(
    topic: str, value: bytes, headers: Iterable[tuple[str, Any]] | None, partition: int, offset: int, timestamp_ms: int
) -> tuple[Envelope, Any]:
    """Envelope and typed event of one record (not a tombstone). Raises `ContractError`, nothing else."""
    if len(value) > MOST_BYTES:
        raise ContractError(f"expected at most {MOST_BYTES} bytes, got {len(value)}")
    given = dict(headers) if headers else None
    kind, decode_body = _route(topic, given.get("ce_type")) if given else _plain(topic)
    try:
        event = decode_body(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ContractError(f"{kind}: {error}") from error
    if given is None:  # the usual record of an application
        envelope = Envelope(f"{topic}/{partition}/{offset}", kind, "", timestamp_ms)
    else:
        envelope = _envelope(kind, given.get("ce_id") or f"{topic}/{partition}/{offset}".encode(), given, timestamp_ms)
    if kind == "FeedbackGiven" and event.said_ms:
        # Bounded as anybody's: the gateway passes on what an application says.
        envelope = msgspec.structs.replace(envelope, time_ms=bounded_time(event.said_ms, timestamp_ms, ""))
    return envelope, event


def body_decoder(kind: str) -> Callable[[bytes], Any]:
    """What makes a typed event of a record's value alone. It raises `msgspec.DecodeError` where that breaks."""
    return _decoders[kind].decode


@lru_cache(maxsize=1024)
def _plain(topic: str) -> tuple[str, Callable[[bytes], Any]]:
    """`_route` of a record without headers."""
    return _route(topic, None)


@lru_cache(maxsize=1024)
def _route(topic: str, raw: Any) -> tuple[str, Callable[[bytes], Any]]:
    """An event's name and its decoder's method by its topic and `ce_type`. What raises is not cached."""
    kind = _text(raw, "ce_type") or _only_type(topic)
    decoder, row = _decoders.get(kind), BY_NAME.get(topic)
    if decoder is None or (row is not None and events.BY_NAME[kind] not in row.events):
        raise ContractError(f"header ce_type: {kind[:64]!r} is not an event of topic {topic}")
    return kind, decoder.decode


def _envelope(kind: str, identity: Any, given: Mapping[str, Any], timestamp_ms: int) -> Envelope:
    get = given.get
    time, source, subject = get("ce_time"), get("ce_source"), get("ce_subject")
    correlation, causation, traceparent = get("ce_correlationid"), get("ce_causationid"), get("ce_traceparent")
    said = filter(None, (identity, time, source, subject, correlation, causation, traceparent))
    if (size := sum(map(len, said))) > MOST_HEADER_BYTES:
        longest = max((name for name in given if name.startswith("ce_")), key=lambda name: len(given[name] or b""))
        raise ContractError(f"header {longest}: expected at most {MOST_HEADER_BYTES} bytes in all of ce_*, got {size}")
    try:
        who = _source(source) if source else ""
        return Envelope(
            identity.decode(),
            kind,
            who,
            bounded_time(_parse_time(time), timestamp_ms, who) if time else timestamp_ms,
            subject.decode() if subject else "",
            correlation.decode() if correlation else "",
            causation.decode() if causation else "",
            traceparent.decode() if traceparent else "",
        )
    except (AttributeError, UnicodeDecodeError):  # not the bytes of a text: say which, or take what can be taken
        who = _source(source)
        return Envelope(
            _text(identity, "ce_id"),
            kind,
            who,
            bounded_time(_parse_time(_text(time, "ce_time").encode()), timestamp_ms, who) if time else timestamp_ms,
            _text(subject, "ce_subject"),
            _text(correlation, "ce_correlationid"),
            _text(causation, "ce_causationid"),
            _text(traceparent, "ce_traceparent"),
        )


@lru_cache(maxsize=1024)
def _source(raw: Any) -> str:
    return _text(raw, "ce_source").removeprefix("tuneloop/")


def _text(raw: Any, name: str) -> str:
    try:
        return raw.decode() if isinstance(raw, bytes) else str(raw or "")
    except UnicodeDecodeError as error:
        raise ContractError(f"header {name}: expected UTF-8 text") from error


def _only_type(topic: str) -> str:
    row = BY_NAME.get(topic)
    if row is not None and row.headerless:
        return row.events[0].__name__
    raise ContractError("header ce_type: missing, and this topic does not take records without headers")


def key_of(event: msgspec.Struct, envelope: Envelope) -> str:
    """The record key of an event, as `schemas.topics` lays it down for its topic."""
    rule: Callable[[Any, Envelope], str] = _KEYS[type(event)]
    return rule(event, envelope)


_KEYS: dict[type[msgspec.Struct], Callable[[Any, Envelope], str]] = {
    events.RecordSubmitted: lambda event, envelope: event.record_id or envelope.id,
    events.ShardWritten: lambda event, _: event.shard_id,
    events.SubjectShared: lambda event, _: event.subject_key,
    events.TriggerOpened: lambda event, _: event.trigger_id,
    events.TriggerClosed: lambda event, _: event.trigger_id,
    events.JobRequested: lambda event, _: event.job_id,
    events.JobControlRequested: lambda event, _: event.model,
    events.TriggerCloseRequested: lambda event, _: event.model,
    events.HoldRequested: lambda event, _: event.model,
    events.JobProgressed: lambda event, _: event.job_id,
    events.JobEnded: lambda event, _: event.job_id,
    events.JobDeferred: lambda event, _: event.trigger_id,
    events.CandidateTrained: lambda event, _: event.job_id,
    events.VerdictReached: lambda event, _: event.job_id,
    events.ReviewRequested: lambda event, _: event.review_id,
    events.ReviewReached: lambda event, _: event.review_id,
    events.ModelStateChanged: lambda event, _: f"model/{event.model}",
    events.BaseRegistered: lambda event, _: f"base/{event.model}",
    events.BaseAddRequested: lambda event, _: event.model,
    events.RollbackRequested: lambda event, _: event.model,
    events.TrainingRequested: lambda event, _: event.model,
    events.DecisionMade: lambda event, _: event.model,
    events.SharesSet: lambda event, _: event.model,
    events.ModelConfigure: lambda event, _: event.model,
    events.ModelConfigured: lambda event, _: f"policy/{event.model}",
    events.AdapterLoaded: lambda event, _: event.replica,
    events.RequestEnded: lambda event, _: event.request_id,
    events.ShadowAnswered: lambda event, _: event.inference_id,
    events.InferenceServed: lambda event, _: event.inference_id,
    # All that tells two opinions apart: compaction must leave a first time, and what was corrected, behind it. An
    # answer's id holds no slash.
    events.FeedbackGiven: lambda event, envelope: (
        f"{event.inference_id}/{event.feedback_id or envelope.id}/{event.metric_name}/{event.said_ms}"
    ),
    events.PerformanceMeasured: lambda event, _: f"{event.model}@{event.version}",
    events.DriftDetected: lambda event, _: event.drift_id,
    events.AlertSent: lambda event, _: event.alert_id,
    events.ErasureRequested: lambda event, _: event.erasure_id,
    events.ErasureCompleted: lambda event, _: f"{event.erasure_id}/receipt",
}


def topic_of(event: msgspec.Struct) -> str:
    return TOPIC_OF[type(event)].name


def unkeyed(types: Sequence[type[msgspec.Struct]] = events.EVENTS) -> list[str]:
    """Events without a key rule: a contract test holds this empty."""
    return [event.__name__ for event in types if event not in _KEYS]
