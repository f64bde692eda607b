"""The codec alone, in memory: `decode_vs_pydantic`, and with the client's queue behind it `produce_us`.

decode_vs_pydantic: events/s of decoding and validating the JSON body of a usage event (InferenceServed, about 620
bytes), against `TypeAdapter.validate_json` of a pydantic model with the same fields, types and defaults, made from
the struct itself. Strict or lax, frozen or not makes no difference to pydantic here; the headers are left out on
both sides. 20,000 different bodies per repetition, the best of 5 passes.

produce_us: microseconds per event of what the gateway does with an answer, `kafka.out` and `kafka.produce` on its own
producer (linger 2 ms), 50,000 events at a time while the client's thread sends them. The peer is the bare client's
`produce` of the same bytes and headers, which is the floor.
"""

from __future__ import annotations

import gc
import statistics
import typing
from collections.abc import Callable
from typing import Any

import msgspec
import pydantic

from schemas import codec
from schemas import events as e
from streams import kafka
from tests.bench import load
from tests.bench.measure import Figure, Parts, Timed, clock, note, ratio

PASSES = 5


def twin(struct: type[msgspec.Struct]) -> type[pydantic.BaseModel]:
    """A pydantic model with the fields, types and defaults of a struct, nested structs included."""
    hints = typing.get_type_hints(struct)
    fields: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        default: Any = ...
        if field.default is not msgspec.NODEFAULT:
            default = field.default
        elif field.default_factory is not msgspec.NODEFAULT:
            default = pydantic.Field(default_factory=field.default_factory)
        fields[field.name] = (_twin_type(hints[field.name]), default)
    return pydantic.create_model(struct.__name__, **fields)


def _twin_type(kind: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return twin(kind)
    arguments = typing.get_args(kind)
    return typing.get_origin(kind)[tuple(map(_twin_type, arguments))] if _holds_struct(arguments) else kind


def _holds_struct(arguments: tuple[Any, ...]) -> bool:
    return any(isinstance(kind, type) and issubclass(kind, msgspec.Struct) for kind in arguments)


def decode_vs_pydantic(parts: Parts) -> list[Figure]:
    bodies = [codec.encode(event, source="bench").value for event in load.inferences(parts.size(20_000, 200))]
    note(f"decode_vs_pydantic: {len(bodies)} bodies of {sum(map(len, bodies)) / len(bodies):.0f} bytes")
    validate = pydantic.TypeAdapter(twin(e.InferenceServed)).validate_json
    decode = codec.body_decoder("InferenceServed")
    pairs = [(decode(body), validate(body)) for body in bodies[:200]]
    assert all(ours == msgspec.convert(theirs.model_dump(), e.InferenceServed) for ours, theirs in pairs)
    ours, peer = (lambda: _passes(decode, bodies)), (lambda: _passes(validate, bodies))
    return [ratio("decode_vs_pydantic", parts, ours, peer, "events/s")]


def _passes(decode: Callable[[bytes], Any], bodies: list[bytes]) -> Timed:
    best = float("inf")
    for _ in range(PASSES):
        with clock() as took:
            for body in bodies:
                decode(body)
        best = min(best, took[0])
    return Timed(len(bodies), best)


def produce_us(parts: Parts) -> list[Figure]:
    events = list(load.inferences(parts.size(50_000, 500)))
    encoded = [kafka.out(event, source="serve", subject="support@3") for event in events]
    client = kafka.producer(parts.bootstrap, linger_ms=2)
    ours, peer = [], []
    for _ in range(parts.rounds):
        gc.collect()
        with clock() as took:
            for event in events:
                kafka.produce(client, kafka.out(event, source="serve", subject="support@3"))
        ours.append(took[0] / len(events) * 1e6)
        assert client.flush(60) == 0
        with clock() as took:
            for record in encoded:
                client.produce(record.topic, value=record.value, key=record.key, headers=record.headers)
        peer.append(took[0] / len(events) * 1e6)
        assert client.flush(60) == 0
        note(f"  produce_us: {ours[-1]:.2f}, bare {peer[-1]:.2f}")
    mine, theirs = statistics.median(ours), statistics.median(peer)
    return [Figure("produce_us", mine, "us/event", mine, theirs, "us/event")]
