"""The evolution guard, by example: what it must refuse and what it must let through."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import pytest

from schemas import evolution, generate
from schemas.events import EVENTS
from schemas.evolution import breaks, incompatibilities, json_schema


class Place(msgspec.Struct, kw_only=True):
    path: str
    rows: int


class PlaceRetyped(msgspec.Struct, kw_only=True):
    path: str
    rows: str


class PlaceWithMore(msgspec.Struct, kw_only=True):
    path: str
    rows: int
    owner: str


class PlaceWithOption(msgspec.Struct, kw_only=True):
    path: str
    rows: int
    owner: str = ""


class Colour(enum.Enum):
    RED = "red"


ABSENT: Any = object()


def struct(name: str = "Fact", closed: bool = False, **fields: Any) -> type[msgspec.Struct]:
    """A struct like an event's: `model` and what is given, as a type or as (type, default)."""
    base: dict[str, Any] = {"model": str, "count": int, "loss": (float, 0.0), "data": Place, **fields}
    declared: list[Any] = [
        (key, *kind) if isinstance(kind, tuple) else (key, kind) for key, kind in base.items() if kind is not ABSENT
    ]
    return msgspec.defstruct(name, declared, kw_only=True, frozen=True, forbid_unknown_fields=closed)


def problems(old: type[msgspec.Struct], new: type[msgspec.Struct]) -> list[str]:
    return incompatibilities(json_schema(old), json_schema(new))


REFUSED: dict[str, tuple[type[msgspec.Struct], type[msgspec.Struct], str]] = {
    "a retyped field": (struct(), struct(count=str), "$.count"),
    "a number that was an integer": (struct(), struct(count=float), "$.count"),
    "an integer that was a number": (struct(), struct(loss=(int, 0)), "$.loss"),
    "a new required field": (struct(), struct(owner=str), "$.owner"),
    "a removed required field": (struct(), struct(count=ABSENT), "$.count"),
    "an optional field made required": (struct(), struct(loss=float), "$.loss"),
    "a required field made optional": (struct(), struct(count=(int, 0)), "$.count"),
    "null where there was none": (struct(), struct(loss=(float | None, None)), "$.loss"),
    "no null where there was one": (struct(loss=(float | None, None)), struct(), "$.loss"),
    "one more type in a union": (struct(count=int | str), struct(count=int | str | bool), "$.count"),
    "a Literal for a string": (struct(), struct(model=Literal["support"]), "$.model"),
    "an Enum for a string": (struct(), struct(model=Colour), "$.model"),
    "a new optional Literal": (struct(), struct(mode=(Literal["a", "b"], "a")), "Fact.mode"),
    "a new optional Literal or null": (struct(), struct(mode=(Literal["a"] | None, None)), "Fact.mode|0"),
    "a new list of Literals": (struct(), struct(mode=(list[Literal["a"]], [])), "Fact.mode[]"),
    "a retyped field of a nested struct": (struct(), struct(data=PlaceRetyped), "$.data.rows"),
    "a new required field of a nested struct": (struct(), struct(data=PlaceWithMore), "$.data.owner"),
    "a removed required field of a nested struct": (struct(data=PlaceWithMore), struct(), "$.data.owner"),
    "a nested struct that may be null": (
        struct(more=(Place | None, None)), struct(more=(PlaceRetyped | None, None)), "$.more.rows",
    ),
    "a struct in a list": (struct(more=(list[Place], [])), struct(more=(list[PlaceRetyped], [])), "$.more[].rows"),
    "a struct in a list that may be null": (
        struct(more=(list[Place] | None, None)), struct(more=(list[PlaceRetyped] | None, None)), "$.more[].rows",
    ),
    "a struct in a mapping": (
        struct(more=(dict[str, Place], {})), struct(more=(dict[str, PlaceRetyped], {})), "$.more{}.rows",
    ),
    "other values in a mapping": (struct(more=(dict[str, str], {})), struct(more=(dict[str, int], {})), "$.more{}"),
    "any values in a mapping": (struct(more=(dict[str, str], {})), struct(more=(dict[str, Any], {})), "$.more{}"),
    "any items in a list": (struct(more=(list[str], [])), struct(more=(list, [])), "$.more[]"),
    "a struct for a mapping": (struct(data=dict[str, Any]), struct(), "$.data"),
    "a mapping for a struct": (struct(), struct(data=dict[str, Any]), "$.data"),
    "a UUID for a string": (struct(), struct(model=UUID), "$.model"),
    "bytes for a string": (struct(), struct(model=bytes), "$.model"),
    "a narrower integer": (struct(), struct(count=Annotated[int, msgspec.Meta(ge=0)]), "$.count"),
    "a wider integer": (struct(count=Annotated[int, msgspec.Meta(ge=0)]), struct(), "$.count"),
    "a new field for closed readers": (struct(closed=True), struct(owner=(str, "")), "$.owner"),
}  # fmt: skip
ACCEPTED = {
    "no change": (struct(), struct()),
    "a new optional field": (struct(), struct(owner=(str, ""))),
    "a new optional field that may be null": (struct(), struct(owner=(Place | None, None))),
    "a new optional list": (struct(), struct(tags=(list[str], []))),
    "a new optional field of a nested struct": (struct(), struct(data=PlaceWithOption)),
    "a removed optional field": (struct(), struct(loss=ABSENT)),
    "another default": (struct(), struct(loss=(float, 1.0))),
    "another order": (struct(), msgspec.defstruct("Fact", [("data", Place), ("count", int), ("model", str)], kw_only=True)),
    "types of a union in another order": (struct(count=int | str), struct(count=str | int)),
    "a nested struct under another name": (
        struct(), struct(data=msgspec.defstruct("Spot", [("path", str), ("rows", int)], kw_only=True)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", REFUSED)
def test_the_guard_refuses(change: str) -> None:
    old, new, path = REFUSED[change]
    found = problems(old, new)
    assert found and any(f"{path}:" in line for line in found), found


@pytest.mark.parametrize("change", ACCEPTED)
def test_the_guard_accepts(change: str) -> None:
    old, new = ACCEPTED[change]
    assert problems(old, new) == []
    sample = new(model="m", count=1, data=msgspec.to_builtins(Place(path="p", rows=1)))
    again = msgspec.json.decode(msgspec.json.encode(sample), type=old)
    assert (again.model, again.count) == ("m", 1)  # type: ignore[attr-defined]


def test_a_break_is_told_for_its_own_direction() -> None:
    old, new = json_schema(struct()), json_schema(struct(count=float))
    assert breaks(old, new) == []
    assert breaks(new, old) == ["$.count: writes ['number'], expected ['integer']"]
    assert incompatibilities(old, new) == ["new message, old reader: $.count: writes ['number'], expected ['integer']"]


PLAIN = {"StrType", "IntType", "FloatType", "BoolType", "NoneType", "ListType", "DictType", "StructType", "UnionType"}


def odd_types(kind: Any, path: str) -> list[str]:
    """Types that JSON has no word for: their schema says `string`, so the guard could not see them come or go."""
    name = type(kind).__name__
    if name not in PLAIN:
        return [f"{path}: {name}"]
    parts = {f".{field.name}": field.type for field in getattr(kind, "fields", ())}
    parts |= {f"|{index}": part for index, part in enumerate(getattr(kind, "types", ()))}
    parts |= {f"[{part}]": getattr(kind, part) for part in ("item_type", "key_type", "value_type") if hasattr(kind, part)}
    return [line for where, part in parts.items() for line in odd_types(part, path + where)]


def test_events_hold_only_what_json_holds() -> None:
    assert [line for event in EVENTS for line in odd_types(msgspec.inspect.type_info(event), event.__name__)] == []
    strange = struct(when=datetime, more=(list[bytes], []), mode=(Literal["a"] | None, None))
    assert odd_types(msgspec.inspect.type_info(strange), "Fact") == [
        "Fact.when: DateTimeType", "Fact.more[item_type]: BytesType", "Fact.mode|0: LiteralType",
    ]  # fmt: skip


def published_as(folder: Any, event: type[msgspec.Struct]) -> None:
    target = folder / "Fact" / "1.json"
    target.parent.mkdir(parents=True)
    target.write_bytes(msgspec.json.encode(json_schema(event)))


def test_a_breaking_change_is_not_generated_and_not_passed(monkeypatch, tmp_path) -> None:
    published_as(tmp_path, struct())
    for module in (evolution, generate):
        monkeypatch.setattr(module, "PUBLISHED", tmp_path)
        monkeypatch.setattr(module, "EVENTS", (struct(count=str),))
    assert any("Fact against version 1" in line and "$.count" in line for line in evolution.check_all())
    with pytest.raises(generate.EvolutionError, match=r"Fact breaks version 1: .*\$\.count"):
        generate.outputs()


def test_a_compatible_change_is_generated_as_the_next_version(monkeypatch, tmp_path) -> None:
    published_as(tmp_path, struct())
    for module in (evolution, generate):
        monkeypatch.setattr(module, "PUBLISHED", tmp_path)
        monkeypatch.setattr(module, "EVENTS", (struct(owner=(str, "")),))
    files, newest = generate.schema_files()
    assert files.keys() == {tmp_path / "Fact" / "2.json"}, "what is published is never written again"
    assert newest == {"Fact": 2}


def test_a_new_event_with_a_closed_enumeration_is_never_published(monkeypatch, tmp_path) -> None:
    for module in (evolution, generate):
        monkeypatch.setattr(module, "PUBLISHED", tmp_path)
        monkeypatch.setattr(module, "EVENTS", (struct(mode=Literal["a", "b"]),))
    with pytest.raises(generate.EvolutionError, match=r"Fact\.mode: a closed enumeration"):
        generate.outputs()
    assert any("never published" in line for line in evolution.check_all())
