"""What forgetting must reach, whatever it is written as: each input with whose it is."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.cli.forget import subject_given
from deploy.cli.output import CommandError
from schemas.events import ErasureRequested
from schemas.identity import subject_of_prompt
from streams.erase import find, logs, tables
from streams.erase import subject as recognising
from streams.erase.logs import blot_out, without
from streams.erase.subject import Subject
from streams.erased import nameless
from streams.kafka import Record
from streams.monitor.land import ClickHouseStore
from tests.ids import answer

MINE, OTHER = answer("a"), answer("b")
GERMAN, SLASHED, EMOJI = "jörg-müller", "org/jane", "jane 🦓"


def letter(value: bytes, **headers: bytes) -> Record:
    return Record("dead.prepare", 0, 7, 1_700_000_000_000, b"training.raw/0/7", value, list(headers.items()))


def escaped(text: str, upper: bool = False) -> str:
    """Every letter as \\uXXXX, in pairs beyond the first 65,536."""
    units = text.encode("utf-16-be")
    codes = [units[place : place + 2].hex() for place in range(0, len(units), 2)]
    return "".join("\\u" + (code.upper() if upper else code) for code in codes)


def broken(subject: str) -> str:
    """A record that no consumer can read, with the subject as it is spelled here."""
    return f'{{"model": "support", "prompt": 7, "subject_id": "{subject}"}}'


THEIRS = {
    "as Python writes it": (GERMAN, json.dumps({"prompt": 7, "subject_id": GERMAN}).encode()),
    "UTF-8": (GERMAN, broken(GERMAN).encode()),
    "upper-case digits": (GERMAN, broken("j\\u00F6rg-m\\u00FCller").encode()),
    "mixed case and spelling": (GERMAN, broken("j\\u00F6rg\\u002dm\\u00fcl\\u006Cer").encode()),
    "every letter escaped": (GERMAN, broken(escaped(GERMAN)).encode()),
    "every letter escaped, upper case": (GERMAN, broken(escaped(GERMAN, upper=True)).encode()),
    "an escaped slash": (SLASHED, broken("org\\/jane").encode()),
    "a slash by its number": (SLASHED, broken("org\\u002Fjane").encode()),
    "a pair of surrogates": (EMOJI, broken("jane \\ud83e\\udd93").encode()),
    "half upper, half lower surrogates": (EMOJI, broken("jane \\uD83E\\udd93").encode()),
    "a quote in the name": ('j"j', broken('j\\"j').encode()),
    "a backslash in the name": ("a\\b", broken("a\\\\b").encode()),
    "under another field, escaped": (GERMAN, json.dumps({"prompt": "q", "user": GERMAN}).encode()),
    "deep within": (GERMAN, json.dumps({"prompt": 7, "meta": [[{"who": [GERMAN]}]]}).encode()),
    "a field's own name escaped": (GERMAN, b'{"prompt": 7, "subject\\u005fid": "j\\u00f6rg-m\\u00fcller"}'),
    "the first of two": (GERMAN, b'{"prompt": "q", "subject_id": "j\\u00f6rg-m\\u00fcller", "subject_id": "x"}'),
    "the second of two": (GERMAN, b'{"prompt": "q", "subject_id": "x", "subject_id": "j\\u00f6rg-m\\u00fcller"}'),
    "the first of two answers": (GERMAN, f'{{"subject_id": "x", "inference_id": "{MINE}", "inference_id": "y"}}'.encode()),
    "as the author of what is said to another": (GERMAN, json.dumps({"subject_id": "x", "author": GERMAN}).encode()),
    "as the first of two authors": (GERMAN, b'{"subject_id": "x", "author": "j\\u00f6rg-m\\u00fcller", "author": "y"}'),
    "as whoever asked": (GERMAN, json.dumps({"subject_id": "x", "requested_by": GERMAN}).encode()),
    "as an author without a subject, by number": ("1234567", b'{"model": "support", "prompt": "q", "author": 1234567}'),
    "JSON within JSON": (GERMAN, json.dumps({"prompt": 7, "body": json.dumps({"user": GERMAN})}).encode()),
    "JSON within JSON within JSON": (SLASHED, json.dumps(json.dumps(json.dumps({"user": SLASHED}))).encode()),
    "a number": ("1234567", b'{"model": "support", "prompt": "q", "subject_id": 1234567}'),
    "with a byte order mark": (GERMAN, b"\xef\xbb\xbf" + json.dumps({"user": GERMAN}).encode()),
    "UTF-16": (GERMAN, json.dumps({"user": GERMAN}, ensure_ascii=False).encode("utf-16")),
    "UTF-16 that was cut off": (GERMAN, broken(GERMAN).encode("utf-16-le")[:-3]),
    "cut off after the name": (GERMAN, broken("j\\u00f6rg-m\\u00fcller").encode()[:-1]),
    "cut off within the name's quotes": (GERMAN, broken("j\\u00f6rg-m\\u00fcller").encode()[:-2]),
    "no UTF-8, escaped": (GERMAN, b"\xff" + broken("j\\u00f6rg-m\\u00fcller").encode()),
    "two documents": (GERMAN, (broken("x") + "\n" + broken("j\\u00f6rg-m\\u00fcller")).encode()),
    "a form": (SLASHED, b"text=hello&subject_id=org/jane&x=1"),
    "a line of a table": (GERMAN, "jörg-müller,where is my parcel,3".encode()),
    "Python's own spelling": (GERMAN, "{'subject_id': 'jörg-müller', 'prompt': 7}".encode()),
    "a literal that JSON lacks": (GERMAN, b'{"x": NaN, "subject_id": "j\\u00f6rg-m\\u00fcller", "prompt": 7}'),
    "too deep to parse": (GERMAN, b'{"subject_id": "j\\u00f6rg-m\\u00fcller", "prompt": ' + b"[" * 100_000),
    "a number too long to compute": (GERMAN, b'{"n": ' + b"9" * 100_000 + b', "prompt": 7, "user": "j\\u00f6rg-m\\u00fcller"}'),
    "half a surrogate beside it": (GERMAN, b'{"x": "\\ud800", "prompt": 7, "user": "j\\u00f6rg-m\\u00fcller"}'),
    "their answer, escaped": (GERMAN, json.dumps({"prompt": 7, "about": MINE}).replace("-", "\\u002d").encode()),
    "their answer, escaped and cut off": (GERMAN, b"\xff" + MINE.replace("-", "\\u002D").encode()),
    "their answer, in a letter's key field": (GERMAN, json.dumps({"prompt": 7, "ids": {"a": [MINE]}}).encode()),
}  # fmt: skip

NOT_THEIRS = {
    "a longer name": (GERMAN, broken("j\\u00f6rg-m\\u00fcller-2").encode()),
    "another letter": (GERMAN, broken("j\\u00f5rg-m\\u00fcller").encode()),
    "what somebody said": (GERMAN, json.dumps({"prompt": GERMAN, "completion": GERMAN}).encode()),
    "what somebody said, as JSON": (GERMAN, json.dumps({"prompt": json.dumps({"user": GERMAN})}).encode()),
    "somebody else's, though it mentions them": (GERMAN, json.dumps({"subject_id": "x", "user": GERMAN}).encode()),
    "another author": (GERMAN, json.dumps({"subject_id": "x", "author": GERMAN + "2", "value": GERMAN}).encode()),
    "a number that names nobody": ("1234567", b'{"model": "support", "prompt": "q", "size": 1234567}'),
    "cut off, a longer name": (GERMAN, broken("j\\u00f6rg-m\\u00fcller-2").encode()[:-1]),
    "an escaped backslash, not an escape": ("j\\u0061", b'{"prompt": 7, "user": "ja"}'),
    "somebody else's answer": (GERMAN, json.dumps({"prompt": 7, "about": OTHER}).replace("-", "\\u002d").encode()),
}


@pytest.mark.parametrize("name", THEIRS)
def test_what_is_theirs_is_found_in_any_spelling(name: str) -> None:
    subject, value = THEIRS[name]
    assert Subject(subject, [MINE]).owns(letter(value))


@pytest.mark.parametrize("name", NOT_THEIRS)
def test_nothing_of_somebody_else_goes_with_them(name: str) -> None:
    subject, value = NOT_THEIRS[name]
    assert not Subject(subject, [MINE]).owns(letter(value))


def test_a_header_of_the_sender_names_them_too() -> None:
    subject = Subject(GERMAN, [MINE])
    assert subject.owns(letter(b"\xff", user=GERMAN.encode())) and subject.owns(letter(b"{}", ce_subject=MINE.encode()))
    assert not subject.owns(letter(b"{}", ce_source=GERMAN.encode()))


def test_who_has_no_id_is_known_by_a_prompt_that_no_consumer_could_read() -> None:
    subject = Subject(subject_of_prompt("wo ist müller"))
    assert subject.owns(letter(json.dumps({"prompt": "wo ist müller", "messages": 7}).encode()))
    turns = [{"role": "user", "content": "wo ist müller"}, {"role": "assistant", "content": 7}]
    assert subject.owns(letter(json.dumps({"messages": turns}).encode()))
    assert not subject.owns(letter(json.dumps({"prompt": "wo ist meier", "messages": 7}).encode()))


COSTLY_BYTES = 6_000_000
COSTLY = {
    "brackets": (b"", b"["),
    "empty lists": (b'{"user": "jane-doe", "x": [', b"[],"),
    "backslashes": (b'"', b"\\"),
    "quotes": (b"", b'"'),
    "the name, all but its end": (b"", b'"jane-do'),
    "escapes of its first letter": (b"", b'"\\u006a'),
    "prefixes of answers": (b"", b"chatcmpl-"),
    "blanks after commas": (b",", b" "),
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_large_letter_takes_time_in_proportion(name: str) -> None:
    start, again = COSTLY[name]
    value = start + again * (COSTLY_BYTES // len(again))
    began = time.process_time()
    Subject("jane-doe", [MINE]).owns(letter(value))
    assert time.process_time() - began < 6.0


def test_what_is_too_large_to_parse_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognising, "LARGEST_PARSED", 100)
    said = json.dumps({"prompt": 7, "x": "x" * 200, "user": GERMAN}).encode()
    assert Subject(GERMAN).owns(letter(said)) and not Subject("somebody").owns(letter(said))


ANSWERS_LETTER = {"__connect.errors.topic": b"usage.inferences", "tuneloop.original.key": MINE.encode()}
LETTERS = {
    "of an answer": (ANSWERS_LETTER, {MINE}),
    "of feedback under an answer's id": (ANSWERS_LETTER | {"__connect.errors.topic": b"usage.feedback"}, set()),
    "of an answer with a key that is no id": (ANSWERS_LETTER | {"tuneloop.original.key": b"../late"}, set()),
    "of an answer with bytes for a key": (ANSWERS_LETTER | {"tuneloop.original.key": b"\xff\xfe"}, set()),
    "of an answer without a key": ({"__connect.errors.topic": b"usage.inferences"}, set()),
    "of nothing": ({}, set()),
}


@pytest.mark.parametrize("name", LETTERS)
def test_an_answer_that_became_a_letter_leads_to_its_feedback(name: str) -> None:
    headers, expected = LETTERS[name]
    assert find._answers_in(letter(b"{}", **headers)) == expected


LOGGED = {
    "a refused connection's address": "GET /?database=x&param_subject=org%2Fjane&y: refused",
    "a statement that failed": "DB::Exception: ... WHERE subject_id = 'org/jane' OR ...",
    "JSON with an escaped slash": '{"subject_id": "org\\/jane"}',
    "JSON with escaped letters": '{"subject_id": "org\\u002fj\\u0061ne"}',
    "a line's end": "user org/jane\n",
    "a line's start": "org/jane is who asked",
    "JSON within JSON": '"{\\"user\\": \\"org/jane\\"}"',
    "Python's repr": "Subject(subject_id='org/jane', inferences=set())",
}
KEPT = {
    "a longer id": "user org/jane-2 came",
    "a longer id in front": "user my-org/jane came",
    "a mail address": "org/jane@example.org",
    "letters beyond ASCII around it": "örg/jané org/janeé",
    "another spelling of another id": "org%2Fjanet",
}


@pytest.mark.parametrize("name", LOGGED)
def test_an_id_in_a_log_is_overwritten_where_it_stands(name: str, tmp_path: Path) -> None:
    log = tmp_path / "a" / "serve.log"
    log.parent.mkdir()
    log.write_text(f"before\n{LOGGED[name]}\nafter\n")
    size, file = log.stat().st_size, log.stat().st_ino
    with log.open("a") as writer:  # a process that goes on logging
        assert blot_out([tmp_path], SLASHED) == 1
        writer.write("more\n")
    said = log.read_text()
    assert said.startswith("before\n") and said.endswith("after\nmore\n") and "*" in said
    assert (log.stat().st_size, log.stat().st_ino) == (size + 5, file)
    assert not any(spelled in said for spelled in (SLASHED, "org%2Fjane", "org\\/jane", "org\\u002fj"))
    assert SLASHED not in without(LOGGED[name], SLASHED) and "*" in without(LOGGED[name], SLASHED)


@pytest.mark.parametrize("name", KEPT)
def test_what_only_looks_like_it_stays_in_the_log(name: str, tmp_path: Path) -> None:
    (tmp_path / "serve.log").write_text(KEPT[name])
    assert blot_out([tmp_path], SLASHED) == 0 and (tmp_path / "serve.log").read_text() == KEPT[name]


def test_an_id_that_is_as_short_as_a_word_counts_in_quotes_alone(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text("0 of 10 records, subject='0', param_subject=0&x, \"0\"\n")
    assert blot_out([tmp_path], "0") == 3
    assert (tmp_path / "x.log").read_text() == "0 of 10 records, subject='*', param_subject=*&x, \"*\"\n"


def test_an_id_across_the_pieces_of_a_large_log_is_found_and_links_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "CHUNK_BYTES", 64)
    folder, outside = tmp_path / "logs", tmp_path / "outside"
    folder.mkdir()
    outside.write_text("user='org/jane'")
    (folder / "link.log").symlink_to(outside)
    os.mkfifo(folder / "socket")
    (folder / "large.log").write_text("".join(f"{'x' * number} 'org/jane'\n" for number in range(200)))
    assert blot_out([folder, tmp_path / "nowhere"], SLASHED) == 200
    assert SLASHED not in (folder / "large.log").read_text() and outside.read_text() == "user='org/jane'"


GIVEN = {
    "a line": ("jane-doe\n", "jane-doe"),
    "a line of Windows": ("jane-doe\r\n", "jane-doe"),
    "no line's end": ("jane-doe", "jane-doe"),
    "the first line alone": ("jane-doe\nsomebody\n", "jane-doe"),
    "blanks that are part of it": (" jane doe \n", " jane doe "),
    "beyond ASCII": ("jörg 🦓\n", "jörg 🦓"),
    "a dash of its own": ("-x\n", "-x"),
}


@pytest.mark.parametrize("name", GIVEN)
def test_the_subject_may_come_from_standard_input(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, expected = GIVEN[name]
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert subject_given("-") == expected


@pytest.mark.parametrize("text", ["", "\n", "  \n", "\t\r\n", "\udcff\n"])
def test_nobody_is_no_subject(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    with pytest.raises(CommandError):
        subject_given("-")
    with pytest.raises(CommandError):
        subject_given(text)


def test_a_request_that_was_carried_out_names_neither_of_the_two() -> None:
    request = ErasureRequested(erasure_id="e", subject_hash="h", key_id="k", subject_id=GERMAN, requested_by="Jane")
    assert nameless(request) == ErasureRequested(erasure_id="e", subject_hash="h", key_id="k")


@pytest.mark.parametrize("given", ["log_queries", "log_query_threads", "log_query_views", "opentelemetry_start_trace_probability"])
def test_no_statement_with_an_id_is_noted_by_clickhouse(given: str) -> None:
    asked: list[tuple[str, dict[str, object]]] = []

    class Client:
        """Takes statements down, as the server's own tables would."""

        def command(self, sql: str, parameters: object = None, settings: dict[str, object] | None = None) -> None:
            asked.append((sql, settings or {}))

        def query(self, sql: str, parameters: object = None, settings: dict[str, object] | None = None) -> Any:
            self.command(sql, parameters, settings)
            return SimpleNamespace(result_rows=[], named_results=lambda: [{"n": 0, "now": 0}])

    client: Any = Client()
    tables.inferences_of(client, GERMAN)
    tables.delete_rows(client, GERMAN, {MINE})
    store = ClickHouseStore(client, None)  # type: ignore[arg-type]
    store._delete("training.raw", {GERMAN: (0, 1)})
    naming = [settings for sql, settings in asked if "{subject" in sql or "{keys" in sql]
    assert len(naming) == 2 + len(tables.PERSONAL) and all(settings[given] == 0 for settings in naming)
