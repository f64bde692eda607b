"""Migrations: what is still to apply, what may not change, and how a file falls into statements."""

from __future__ import annotations

from pathlib import Path

import pytest

from streams.monitor.migrate import FOLDER, MigrationError, checksum, pending, statements


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("0001_first.sql", "0002_second.sql", "0010_third.sql", "notes.sql", "0003_readme.md"):
        (tmp_path / name).write_text(f"-- {name}\nSELECT 1;\n")
    return tmp_path


def test_files_are_applied_once_and_in_order(folder: Path) -> None:
    names = ["0001_first.sql", "0002_second.sql", "0010_third.sql"]
    assert [path.name for path in pending({}, folder)] == names
    applied = {name: checksum(folder / name) for name in names[:2]}
    assert [path.name for path in pending(applied, folder)] == names[2:]
    assert pending({name: checksum(folder / name) for name in names}, folder) == []


def test_an_applied_file_may_not_change(folder: Path) -> None:
    applied = {"0001_first.sql": checksum(folder / "0001_first.sql")}
    (folder / "0001_first.sql").write_text("SELECT 2;\n")
    with pytest.raises(MigrationError, match=r"0001_first.sql was changed after it was applied; write a new migration"):
        pending(applied, folder)


def test_a_file_falls_into_its_statements() -> None:
    assert statements("SELECT ';';\n\n SELECT\n 2;\n") == ["SELECT ';'", "SELECT\n 2"]
    assert statements("\n;\n \n") == []


def test_the_shipped_migrations_can_be_run_twice() -> None:
    files = pending({}, FOLDER)
    assert [int(path.name[:4]) for path in files] == list(range(1, len(files) + 1)), "numbered without a gap"
    for path in files:
        for statement in statements(path.read_text()):
            code = "\n".join(line for line in statement.splitlines() if not line.startswith("--")).strip()
            repeatable = ("CREATE OR REPLACE", "DROP", "ALTER TABLE")
            assert code.startswith(repeatable) or " IF NOT EXISTS " in code.splitlines()[0], code[:80]
            assert not code.startswith("CREATE TABLE") or "MergeTree" in code
