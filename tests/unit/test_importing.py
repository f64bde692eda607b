"""Reading training files: each accepted form, and each refusal with its row, its field and what was expected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.importing import Columns, FileError, Refusal, read
from schemas.events import RecordSubmitted

USER, ANSWER = {"role": "user", "content": "Where?"}, {"role": "assistant", "content": "There."}
SYSTEM = {"role": "system", "content": "Be brief."}


def jsonl(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def table(folder: Path, text: str) -> Path:
    path = folder / "rows.csv"
    path.write_text(text, encoding="utf-8")
    return path


def records(path: Path, columns: Columns | None = None) -> list[RecordSubmitted]:
    items = list(read(path, "support", columns or Columns()))
    assert not [item for item in items if isinstance(item, Refusal)], items
    return [item for item in items if isinstance(item, RecordSubmitted)]


def refusals(path: Path, columns: Columns | None = None) -> list[tuple[int, str, str]]:
    found = [item for item in read(path, "support", columns or Columns()) if isinstance(item, Refusal)]
    return [(item.row, item.field, item.expected) for item in found]


def turns(record: RecordSubmitted) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in record.messages]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Where?", "completion": "There."},
        {"messages": [USER, ANSWER]},
        {"prompt": [USER], "completion": [ANSWER]},
        {"messages": [USER], "completion": "There."},
        {"prompt": "Where?", "completion": "There.", "source": {"extra": 1}},
    ],
)
def test_each_form_of_a_supervised_example(tmp_path: Path, row: dict[str, Any]) -> None:
    (record,) = records(jsonl(tmp_path, row))
    assert (record.model, record.kind, record.origin) == ("support", "sft", "import")
    assert (turns(record), record.completion, record.label) == ([USER], "There.", None)
    assert (record.subject_id, record.said_ms) == ("", 0) and record.record_id.startswith("import-")


def test_forms_of_one_example_are_one_record(tmp_path: Path) -> None:
    rows = [{"prompt": "Where?", "completion": "There."}, {"messages": [USER, ANSWER]}, {"prompt": [USER], "completion": [ANSWER]}]
    assert len({record.record_id for record in records(jsonl(tmp_path, *rows))}) == 1
    other = {"prompt": "Where?", "completion": "Elsewhere."}
    assert len({record.record_id for record in records(jsonl(tmp_path, rows[0], other))}) == 2


def test_a_whole_conversation(tmp_path: Path) -> None:
    (record,) = records(jsonl(tmp_path, {"messages": [SYSTEM, USER, ANSWER, USER, ANSWER]}))
    assert turns(record) == [SYSTEM, USER, ANSWER, USER] and record.completion == "There."


@pytest.mark.parametrize("as_turns", [False, True])
def test_preference(tmp_path: Path, as_turns: bool) -> None:
    chosen, rejected = ([ANSWER], [{**ANSWER, "content": "No."}]) if as_turns else ("There.", "No.")
    (record,) = records(jsonl(tmp_path, {"prompt": [USER], "chosen": chosen, "rejected": rejected}))
    assert (record.kind, record.chosen, record.rejected, record.completion) == ("preference", "There.", "No.", "")


@pytest.mark.parametrize("label", [True, False])
def test_kto(tmp_path: Path, label: bool) -> None:
    rows = [{"prompt": "Where?", "completion": "There.", "label": label}, {"messages": [USER, ANSWER], "label": label}]
    for record in records(jsonl(tmp_path, *rows)):
        assert (record.kind, record.completion, record.label) == ("kto", "There.", label)


def test_csv_with_named_columns(tmp_path: Path) -> None:
    path = table(tmp_path, '\ufeffid,question,answer\n7,"Where,\nplease?",There.\n8,Who?,Me.\n7,When?,Now.\n')
    found = records(path, Columns("question", "answer", "id"))
    assert [record.messages[0].content for record in found] == ["Where,\nplease?", "Who?", "When?"]
    assert [record.subject_id for record in found] == ["7", "8", "7"]


def test_csv_of_texts_and_labels(tmp_path: Path) -> None:
    path = table(tmp_path, "text,label\nWhere is it?,card_arrival\n")
    (record,) = records(path, Columns("text", "label"))
    assert (record.kind, record.completion, record.label) == ("sft", "card_arrival", None)


def test_csv_with_thumbs(tmp_path: Path) -> None:
    path = table(tmp_path, "prompt,completion,label\na,b,true\na,c,False\na,d,maybe\na,e,\n")
    assert [item.label for item in read(path, "support", Columns()) if isinstance(item, RecordSubmitted)] == [True, False]
    assert refusals(path) == [
        (4, "label", "true or false, got 'maybe'"), (5, "label", "true or false, got ''"),
    ]  # fmt: skip


def test_csv_with_pairs(tmp_path: Path) -> None:
    path = table(tmp_path, "prompt,completion,chosen,rejected\na,,b,c\n")
    (record,) = records(path)
    assert (record.kind, record.chosen, record.rejected) == ("preference", "b", "c")


CONTEXT = "text, or a list of {role, content} (or a field `messages`)"
TURNS = "text, or a list with one assistant turn"
FILLED = "an answer that is not empty"
LAST = "a user's turn at the end that is not empty"


@pytest.mark.parametrize(
    ("row", "field", "expected"),
    [
        ({"completion": "x"}, "prompt", CONTEXT),
        ({"prompt": "", "completion": "x"}, "prompt", CONTEXT),
        ({"prompt": 5, "completion": "x"}, "prompt", CONTEXT),
        ({"messages": [{"role": "user"}], "completion": "x"}, "messages", CONTEXT),
        ({"messages": []}, "messages", CONTEXT),
        ({"prompt": "a"}, "completion", FILLED),
        ({"prompt": "a", "completion": "  "}, "completion", FILLED),
        ({"prompt": "a", "completion": 5}, "completion", TURNS),
        ({"prompt": "a", "completion": [USER]}, "completion", TURNS),
        ({"prompt": "a", "chosen": "b"}, "rejected", FILLED),
        ({"prompt": "a", "rejected": "b"}, "chosen", FILLED),
        ({"prompt": "a", "chosen": "b", "rejected": [USER]}, "rejected", TURNS),
        ({"prompt": "a", "completion": "b", "label": "yes"}, "label", "true or false, got 'yes'"),
        ({"prompt": "a", "completion": "b", "label": 1}, "label", "true or false, got 1"),
        ({"messages": [ANSWER]}, "messages", LAST),
        ({"messages": [USER, SYSTEM, ANSWER]}, "messages", LAST),
        ({"messages": [{"role": "user", "content": " "}, ANSWER]}, "messages", LAST),
        (["a"], "-", "a JSON object, got list"),
    ],
)
def test_each_refusal_names_row_field_and_what_was_expected(tmp_path: Path, row: Any, field: str, expected: str) -> None:
    good = {"prompt": "Where?", "completion": "There."}
    path = jsonl(tmp_path, good, b"", row, good)
    assert refusals(path) == [(3, field, expected)], "an empty line counts, as an editor shows it"
    assert len([item for item in read(path, "support", Columns()) if isinstance(item, RecordSubmitted)]) == 2


@pytest.mark.parametrize("line", [b"{", b'{"prompt": "\xff"}', b'{"a":' + b"[" * 100_000, b"prompt,completion"])
def test_a_line_that_is_no_json_is_refused_and_the_rest_goes_on(tmp_path: Path, line: bytes) -> None:
    path = jsonl(tmp_path, line, {"prompt": "a", "completion": "b"})
    ((row, field, expected),) = refusals(path)
    assert (row, field) == (1, "-") and expected.startswith("a JSON object on one line (")


def test_a_refusal_speaks_of_the_users_own_columns(tmp_path: Path) -> None:
    columns = Columns("question", "answer")
    rows = [{"answer": "x"}, {"question": "a"}, {"question": "a", "answer": 5}]
    assert [field for _, field, _ in refusals(jsonl(tmp_path, *rows), columns)] == ["question", "answer", "answer"]


def test_csv_rows_are_counted_as_an_editor_shows_them(tmp_path: Path) -> None:
    path = table(tmp_path, "prompt,completion\na,b\n,c\nd\ne,f,g\n")
    assert [(row, field) for row, field, _ in refusals(path)] == [(3, "prompt"), (4, "completion")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "no file at "),
        ("rows.parquet", "x", "expected a .jsonl or .csv file"),
        ("rows.csv", "text,completion\na,b\n", "no column 'prompt', it has text, completion; name it with --prompt-column"),
        ("rows.csv", "prompt,text\na,b\n", "no column 'completion'.*--completion-column"),
        ("rows.csv", "", "no column 'prompt'"),
        ("rows.csv", 'prompt,completion\na,"' + "b" * 140_000 + '"\n', "line 2: not readable as CSV"),
    ],
    ids=["missing", "form", "prompt column", "completion column", "empty", "field too large"],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(FileError, match=message):
        list(read(path, "support", Columns()))


def test_a_subject_column_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"no column 'who'.*--subject-column"):
        list(read(table(tmp_path, "prompt,completion\na,b\n"), "support", Columns(subject="who")))


TIMES = {
    "2026-11-21T08:00:00Z": 1_795_248_000_000, "2026-11-21": 1_795_219_200_000, 1_795_248_000: 1_795_248_000_000,
    "2026-11-21 09:00:00+01:00": 1_795_248_000_000, "1795248000.5": 1_795_248_000_500, "": 0, None: 0,
}  # fmt: skip


@pytest.mark.parametrize("said", TIMES)
def test_a_row_is_as_old_as_its_time_column_says(tmp_path: Path, said: Any) -> None:
    (record,) = records(jsonl(tmp_path, {"prompt": "Where?", "completion": "There.", "time": said}))
    assert record.said_ms == TIMES[said]
    (named,) = records(jsonl(tmp_path, {"prompt": "Where?", "completion": "There.", "at": said}), Columns(time="at"))
    assert named == record


@pytest.mark.parametrize("said", ["yesterday", "2026-13-40", [1], "9" * 400, True])
def test_what_is_no_time_is_refused_by_name(tmp_path: Path, said: Any) -> None:
    row = {"prompt": "Where?", "completion": "There.", "time": said}
    (found,) = read(jsonl(tmp_path, row), "support", Columns())
    assert isinstance(found, Refusal) and found.field == "time" and "2026-11-21" in found.expected
