"""Producer and consumer of every pair of versions, message by message: of our events, and of made-up histories."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from schemas import codec, evolution, generate
from schemas.codec import ContractError, decode
from schemas.events import EVENTS, RecordSubmitted, RollbackRequested
from schemas.evolution import Schema, breaks, json_schema, newest_versions, published
from schemas.topics import TOPIC_OF
from tests.contract.examples import EXAMPLES
from tests.contract.test_evolution import ABSENT, ACCEPTED, Place, PlaceWithMore, struct
from tests.contract.versions import Body, matrix, refusals, samples, sent_on, struct_of

Event = type[msgspec.Struct]
every_event = pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
NOW = "now"


def sayable_as(event: Event) -> Callable[[Body], bool]:
    """What an event asks for beyond what a JSON Schema of it says."""
    if event is RecordSubmitted:
        return lambda body: bool(body.get("messages") or body.get("prompt") or body.get("kind") == "document")
    return lambda body: True


def history(event: Event) -> dict[Any, Schema]:
    """Every published version of an event, and the struct as it stands."""
    return {**published(event), NOW: json_schema(event)}


def taken(event: Event, body: Body) -> msgspec.Struct:
    """The event that our consumers read from a body."""
    headers = [("ce_type", event.__name__.encode())]
    where = {"partition": 0, "offset": 0, "timestamp_ms": 0}
    return decode(TOPIC_OF[event].name, json.dumps(body).encode(), headers, **where)[1]


def read_by(schema: Schema, value: bytes) -> Body:
    """What a program written from a schema reads from a record."""
    read: Body = msgspec.to_builtins(msgspec.json.decode(value, type=struct_of(schema)))
    return read


@every_event
def test_every_version_reads_every_other(event: Event) -> None:
    versions = history(event)
    assert len(versions) >= 2
    assert matrix(versions, sayable=sayable_as(event)) == {}
    assert [pair for pair in product(versions, versions) if breaks(versions[pair[0]], versions[pair[1]])] == []


@every_event
def test_our_consumers_take_what_a_producer_of_any_version_sends(event: Event) -> None:
    for schema in history(event).values():
        for body in filter(sayable_as(event), samples(schema)):
            for sent in (body, sent_on(body, schema)):
                ours = codec.encode(taken(event, sent), source="test").value
                before, after = (read_by(schema, value) for value in (msgspec.json.encode(sent), ours))
                kept = before.keys() & set(event.__struct_fields__)
                assert kept and all(before[name] == after[name] for name in kept)


@every_event
def test_a_consumer_of_any_version_takes_what_our_producers_send(event: Event) -> None:
    sent = codec.encode(EXAMPLES[event], source="test").value
    for schema in history(event).values():
        read, written = read_by(schema, sent), read_by(json_schema(event), sent)  # turns leave out what they do not have
        assert written.keys() == json.loads(sent).keys()
        assert read == {name: written[name] for name in read}


def test_what_only_the_event_forbids_is_said_by_its_own_words() -> None:
    assert not sayable_as(RecordSubmitted)({"model": "m", "messages": [], "prompt": ""})
    with pytest.raises(ContractError, match="`messages` or `prompt` is required"):
        taken(RecordSubmitted, {"model": "m"})
    # JSON Schema counts 3.0 among the integers; our readers take digits alone, and the AsyncAPI document says so.
    assert jsonschema.Draft202012Validator({"type": "integer"}).is_valid(3.0)
    with pytest.raises(ContractError, match=r"Expected `int`, got `float` - at `\$\.epoch`"):
        taken(RollbackRequested, {"model": "m", "epoch": 3.0})


@every_event
def test_a_reader_made_from_a_schema_is_true_to_it(event: Event) -> None:
    for schema in history(event).values():
        assert json_schema(struct_of(schema)) == schema


def test_samples_show_every_form_of_every_field() -> None:
    kind = struct(note=(str | None, None), more=(list[Place], []), tags=(dict[str, int], {}), value=(bool | int | float | str, 0))
    shown = samples(json_schema(kind))
    assert set(shown[0]) == {"model", "count", "data"}, "the first holds only what is required"
    assert {type(body["note"]) for body in shown[1:]} == {str, type(None)}
    assert {type(body["value"]) for body in shown[1:]} == {bool, int, float, str}
    assert [] in [body["more"] for body in shown[1:]] and any(body["more"] for body in shown[1:])
    assert {} in [body["tags"] for body in shown[1:]] and any(body["tags"] for body in shown[1:])


def made_up(*versions: Event) -> dict[Any, Schema]:
    return {number: json_schema(version) for number, version in enumerate(versions, start=1)}


GROWN = made_up(
    struct(),
    struct(owner=(str, "")),
    struct(owner=(str, ""), loss=ABSENT, note=(str | None, None), more=(list[Place], []), tags=(dict[str, float], {})),
)
# What each next version may do to the one before it, and what only a look at all pairs finds.
REFUSED: dict[str, tuple[dict[Any, Schema], dict[tuple[int, int], str]]] = {
    "a field that comes back as something else": (
        made_up(struct(owner=(str, "")), struct(), struct(owner=(int, 0))),
        {(1, 3): "Expected `int`, got `str` - at `$.owner`", (3, 1): "Expected `str`, got `int` - at `$.owner`"},
    ),
    "a new required field": (
        made_up(struct(), struct(region=str), struct(region=str, note=(str, ""))),
        {(1, 2): "missing required field `region`", (1, 3): "missing required field `region`"},
    ),
    "a required field that became optional": (
        made_up(struct(), struct(), struct(count=(int, 0))),
        {(3, 1): "missing required field `count`", (3, 2): "missing required field `count`"},
    ),
    "integers, then fractions, then integers": (
        made_up(struct(), struct(count=float), struct()),
        {(2, 1): "Expected `int`, got `float` - at `$.count`", (2, 3): "Expected `int`, got `float` - at `$.count`"},
    ),
    "null for once": (
        made_up(struct(), struct(loss=(float | None, None)), struct()),
        {(2, 1): "Expected `float`, got `null` - at `$.loss`", (2, 3): "Expected `float`, got `null` - at `$.loss`"},
    ),
    "a nested struct that asks for more": (
        made_up(struct(), struct(note=(str, "")), struct(data=PlaceWithMore)),
        {(1, 3): "missing required field `owner` - at `$.data`", (2, 3): "missing required field `owner` - at `$.data`"},
    ),
}  # fmt: skip


def test_a_history_of_three_versions_that_grew_is_read_by_all() -> None:
    assert matrix(GROWN) == {}
    assert [pair for pair in product(GROWN, GROWN) if breaks(GROWN[pair[0]], GROWN[pair[1]])] == []
    assert len({json.dumps(version) for version in GROWN.values()}) == 3


@pytest.mark.parametrize("name", REFUSED)
def test_a_pair_that_must_be_refused_is_refused_and_no_other(name: str) -> None:
    versions, expected = REFUSED[name]
    found = matrix(versions)
    assert found.keys() == expected.keys()
    for pair, said in expected.items():
        assert any(said in line for line in found[pair]), found[pair]
    told = {pair for pair in product(versions, versions) if breaks(versions[pair[0]], versions[pair[1]])}
    assert told == expected.keys(), "the guard, which sees only schemas, says the same"


@pytest.mark.parametrize("change", ACCEPTED)
def test_what_the_guard_accepts_is_read_both_ways(change: str) -> None:
    assert matrix(made_up(*ACCEPTED[change])) == {}


def test_a_validator_and_a_program_that_differ_are_found() -> None:
    reader = json_schema(struct())
    reader["$defs"]["Fact"]["properties"]["model"]["minLength"] = 1  # which a struct made from it does not know
    with pytest.raises(AssertionError, match="differ over"):
        refusals(json_schema(struct()), reader)


def publish(folder: Path, versions: dict[Any, Schema]) -> None:
    for number, schema in versions.items():
        path = folder / "Fact" / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(schema))


def test_a_field_may_not_come_back_as_something_else(monkeypatch, tmp_path) -> None:
    versions, _ = REFUSED["a field that comes back as something else"]
    publish(tmp_path, {1: versions[1], 2: versions[2]})
    for module in (evolution, generate):
        monkeypatch.setattr(module, "PUBLISHED", tmp_path)
        monkeypatch.setattr(module, "EVENTS", (struct(owner=(int, 0)),))
    with pytest.raises(generate.EvolutionError, match=r"Fact breaks version 1: .*\$\.owner"):
        generate.schema_files()


def test_the_newest_version_is_the_highest_number(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(evolution, "PUBLISHED", tmp_path)
    monkeypatch.setattr(evolution, "EVENTS", (struct(), struct("Unpublished")))
    publish(tmp_path, {2: GROWN[1], 10: GROWN[2], 9: GROWN[3]})
    assert newest_versions() == {"Fact": 10}


def test_what_we_write_names_the_newest_version_and_is_written_only_when_published(tmp_path) -> None:
    schemas = tmp_path / "schemas"
    shutil.copytree(evolution.PUBLISHED.parent, schemas, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(schemas / "published/JobEnded/1.json", schemas / "published/JobEnded/2.json")
    shutil.rmtree(schemas / "published/JobDeferred")
    program = (
        "from schemas import codec, events\n"
        "print(dict(codec.encode(events.JobEnded(model='m', job_id='j', outcome='failed'), source='x').headers)['ce_dataschema'])\n"
        "codec.encode(events.JobDeferred(model='m', trigger_id='d', waits_for={}, new_examples=1, min_new_examples=2), source='x')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": "."}, capture_output=True, text=True, check=False)
    assert done.stdout == "b'schemas/published/JobEnded/2.json'\n"
    assert "ContractError: JobDeferred: no schema of it was published; run `python -m schemas.generate`" in done.stderr
