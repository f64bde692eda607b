"""The evolution rule: a change stands only if old and new read each other.

Compares JSON Schemas of a published version and of the struct as it stands now, in both directions:
every message the writer may send must satisfy the reader. New fields are optional, nothing is retyped,
nothing required appears or goes; anything else is a new event name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from schemas.events import EVENTS

PUBLISHED = Path(__file__).parent / "published"
Schema = dict[str, Any]


def json_schema(event: type[msgspec.Struct]) -> Schema:
    """The JSON Schema (2020-12) of one event's body."""
    return msgspec.json.schema(event)


def published(event: type[msgspec.Struct]) -> dict[int, Schema]:
    """Every published version of one event's schema, by number."""
    folder = PUBLISHED / event.__name__
    return {int(path.stem): json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def newest_versions() -> dict[str, int]:
    """The number of each event's newest published schema, by the event's name; from the names of the files alone."""
    numbers = {e.__name__: [int(path.stem) for path in (PUBLISHED / e.__name__).glob("*.json")] for e in EVENTS}
    return {name: max(found) for name, found in numbers.items() if found}


def breaks(writer: Schema, reader: Schema) -> list[str]:
    """What a message written under `writer` may hold that `reader` refuses; empty = it always decodes."""
    return _Comparison(writer, reader).compare(writer, reader, "$")


def incompatibilities(old: Schema, new: Schema) -> list[str]:
    """Both directions: old messages under the new struct, new messages under the old one."""
    return [
        *(f"old message, new reader: {line}" for line in breaks(old, new)),
        *(f"new message, old reader: {line}" for line in breaks(new, old)),
        *closed_enumerations(new),
    ]


def closed_enumerations(schema: Schema, path: str = "$") -> list[str]:
    """Where a schema lists the values it takes: the next value would be refused by every older reader."""
    if "enum" in schema or "const" in schema:
        return [f"{path}: a closed enumeration; keep it an open string"]
    parts = {f"{path}.{name}": part for name, part in schema.get("properties", {}).items()}
    parts |= schema.get("$defs", {})
    parts |= {f"{path}|{index}": part for index, part in enumerate(schema.get("anyOf", ()))}
    parts |= {f"{path}[]": schema.get("items"), f"{path}{{}}": schema.get("additionalProperties")}
    return [
        line for where, part in parts.items() if isinstance(part, dict) for line in closed_enumerations(part, where)
    ]


def check_all() -> list[str]:
    """One line per break between any event and any of its published versions."""
    problems = []
    for event in EVENTS:
        versions = published(event)
        if not versions:
            problems.append(f"{event.__name__}: never published; run `python -m schemas.generate`")
        problems += [f"{event.__name__}: {line}" for line in closed_enumerations(json_schema(event))]
        for number, schema in versions.items():
            lines = incompatibilities(schema, json_schema(event))
            problems += [f"{event.__name__} against version {number}: {line}" for line in lines]
    return problems


# What narrows a type; a reader may not ask for more of it than the writer promises.
_BOUNDS = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern",
    "format", "contentEncoding", "minItems", "maxItems", "prefixItems", "minProperties", "maxProperties", "const",
)  # fmt: skip


class _Comparison:
    """One writer's schema against one reader's; the roots are where their `$ref`s point into."""

    def __init__(self, writer: Schema, reader: Schema) -> None:
        self._writer, self._reader = writer, reader

    def compare(self, writer: Schema, reader: Schema, path: str) -> list[str]:
        """Every form that the writer may choose must have one that the reader takes."""
        writes, reads = _forms(writer, self._writer), _forms(reader, self._reader)
        refused = [form for form in writes if not any(_takes(form, known) for known in reads)]
        if refused:
            return [f"{path}: writes {sorted(map(_kind, writes))}, expected {sorted(map(_kind, reads))}"]
        problems = []
        for form in writes:
            ways = [self._same_kind(form, known, path) for known in reads if _takes(form, known)]
            best = min(ways, key=len)
            problems += best
        return problems

    def _same_kind(self, writer: Schema, reader: Schema, path: str) -> list[str]:
        problems = [
            f"{path}: expected {bound} {reader[bound]!r}, writes {writer.get(bound, 'anything')!r}"
            for bound in _BOUNDS
            if bound in reader and reader[bound] != writer.get(bound)
        ]
        if "enum" in reader:
            problems.append(f"{path}: a closed enumeration; keep it an open string")
        if _kind(reader) == "struct":
            problems += self._structs(writer, reader, path)
        if _kind(reader) == "array":
            problems += self.compare(writer.get("items", {}), reader.get("items", {}), f"{path}[]")
        if _kind(reader) == "map":
            values = writer.get("additionalProperties", {}), reader.get("additionalProperties", {})
            problems += self.compare(*values, f"{path}{{}}")
        return problems

    def _structs(self, writer: Schema, reader: Schema, path: str) -> list[str]:
        wrote, reads = writer["properties"], reader["properties"]
        surely = set(writer.get("required", ()))
        problems = [
            f"{path}.{name}: required by the reader, not always written"
            for name in reader.get("required", ())
            if name not in surely
        ]
        if reader.get("additionalProperties") is False:
            unknown = sorted(wrote.keys() - reads.keys())
            problems += [f"{path}.{name}: unknown to a reader that takes no other field" for name in unknown]
        for name in sorted(wrote.keys() & reads.keys()):
            problems += self.compare(wrote[name], reads[name], f"{path}.{name}")
        return problems


def _forms(schema: Schema, root: Schema) -> list[Schema]:
    """The alternatives of a schema, `$ref`s followed; one for most."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    if "anyOf" in schema:
        return [form for option in schema["anyOf"] for form in _forms(option, root)]
    return [schema]


def _kind(form: Schema) -> str:
    if "enum" in form:
        return "enum"
    kind: str = form.get("type", "any")
    return kind if kind != "object" else "struct" if "properties" in form else "map"


def _takes(writer: Schema, reader: Schema) -> bool:
    """Whether a reader's form is of the kind that the writer writes."""
    return _kind(reader) in ("any", _kind(writer)) or (_kind(writer), _kind(reader)) == ("integer", "number")
