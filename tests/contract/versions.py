"""Two versions of one event against each other: what a writer of one may send, and what a reader of the other says.

A version is its JSON Schema, as published. `samples` are messages that a writer of it may send, `struct_of` is the
program of somebody who wrote theirs from it, and `refusals` lets the one read the other. `schemas.evolution` says the
same from the schemas alone; here messages go over the wire.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Annotated, Any

import jsonschema
import msgspec

from schemas.evolution import Schema

Body = dict[str, Any]
SCALARS: dict[str, list[Any]] = {
    "string": ["", "text", "ünï\u2028\n"],
    "integer": [0, -7, 2**53 + 1],
    "number": [0.5, 3, -1.5],
    "boolean": [True, False],
    "null": [None],
}
NAMES: list[Any] = ["support", "a.b-c_9", "0" * 63]  # what every pattern of ours takes
# JSON Schema counts 3.0 among the integers; a program with types does not.
_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int),
)
_TYPES: dict[str, Any] = {"string": str, "integer": int, "number": float, "boolean": bool, "null": None}


def samples(schema: Schema, root: Schema | None = None) -> list[Any]:
    """Messages valid under a schema: each with only what is required, and fully, with every form of every field."""
    root = root or schema
    schema = _followed(schema, root)
    if "pattern" in schema:
        assert all(re.search(schema["pattern"], name) for name in NAMES), f"no sample of {schema['pattern']}"
        return NAMES
    if "anyOf" in schema:
        return [sample for form in schema["anyOf"] for sample in samples(form, root)]
    if schema["type"] in SCALARS:
        return SCALARS[schema["type"]]
    if schema["type"] == "array":
        return [[], samples(schema["items"], root)]
    if "properties" not in schema:
        return [{}, {f"key {n}": value for n, value in enumerate(samples(schema["additionalProperties"], root))}]
    return list(_objects(schema, root))


def _objects(schema: Schema, root: Schema) -> Iterator[Body]:
    """The body of required fields alone, then full ones, as many as the field of most forms needs."""
    forms = {name: samples(part, root) for name, part in schema["properties"].items()}
    yield {name: forms[name][0] for name in schema.get("required", ())}
    for turn in range(max(map(len, forms.values()), default=0)):
        yield {name: values[turn % len(values)] for name, values in forms.items()}


def _followed(schema: Schema, root: Schema) -> Schema:
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


def struct_of(schema: Schema) -> Any:
    """The msgspec struct that a reader of this schema would write by hand."""
    return _Reader(schema).type_of(schema)


class _Reader:
    """Types out of one schema; a struct that is named twice is made once."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._made: dict[str, Any] = {}

    def type_of(self, schema: Schema) -> Any:
        schema = _followed(schema, self._root)
        if "anyOf" in schema:
            first, *others = (self.type_of(form) for form in schema["anyOf"])
            for other in others:
                first = first | other
            return first
        if schema["type"] == "array":
            return list[self.type_of(schema["items"])]  # type: ignore[misc]
        if schema["type"] == "object" and "properties" not in schema:
            return dict[str, self.type_of(schema["additionalProperties"])]  # type: ignore[misc]
        if "pattern" in schema:
            return Annotated[str, msgspec.Meta(pattern=schema["pattern"])]
        return self._struct(schema) if schema["type"] == "object" else _TYPES[schema["type"]]

    def _struct(self, schema: Schema) -> Any:
        name = schema["title"]
        if name not in self._made:
            fields = [self._field(field, part) for field, part in schema["properties"].items()]
            words = {"__doc__": schema["description"]} if "description" in schema else {}
            self._made[name] = msgspec.defstruct(name, fields, kw_only=True, frozen=True, namespace=words)
        return self._made[name]

    def _field(self, name: str, part: Schema) -> Any:
        kind = self.type_of(part)
        return (name, kind, part["default"]) if "default" in part else (name, kind)


def refusals(writer: Schema, reader: Schema, sayable: Callable[[Body], bool] = lambda body: True) -> list[str]:
    """What a reader of one version says to a writer of another; empty = every message was taken.

    `sayable` leaves out what the writer's schema cannot forbid but its event does. The reader is two programs, one
    with types and one with a validator; where they differ, the schema does not say what the wire does.
    """
    bodies = [body for body in samples(writer) if sayable(body)]
    assert len(bodies) > 1, "too few messages to show anything"
    valid, decoder = _Validator(reader), msgspec.json.Decoder(struct_of(reader))
    said = []
    for body in (*bodies, *(sent_on(body, writer) for body in bodies)):
        refusal = _refusal(decoder, body)
        assert valid.is_valid(body) == (refusal is None), f"a validator and a program differ over {body}: {refusal}"
        said += [refusal] if refusal else []
    return said


def _refusal(decoder: msgspec.json.Decoder[Any], body: Body) -> str | None:
    try:
        decoder.decode(msgspec.json.encode(body))
    except msgspec.ValidationError as error:
        return str(error)
    return None


def sent_on(body: Body, writer: Schema) -> Body:
    """The body as the writer's own program sends it: what was not set with its default."""
    return json.loads(msgspec.json.encode(msgspec.json.decode(msgspec.json.encode(body), type=struct_of(writer))))


def matrix(history: Mapping[Any, Schema], **how: Any) -> dict[tuple[Any, Any], list[str]]:
    """Every ordered pair (writer, reader) of a history with what was refused; pairs without refusals are left out."""
    pairs = {(p, q): refusals(history[p], history[q], **how) for p, q in product(history, history)}
    return {pair: lines for pair, lines in pairs.items() if lines}
