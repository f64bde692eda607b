"""People's words in the terminal: shown as they are, obeyed never, and no command ends of them."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.table import Table

from deploy import local_run
from deploy.cli import config, output
from deploy.cli import main as command_line
from deploy.cli.context import Context, context
from deploy.cli.output import Format, PlainConsole
from deploy.demo.stage import Stage
from deploy.settings import Settings, SettingsError
from deploy.shown import WithoutSecrets, readable, shown

ROOT = Path(__file__).parents[2]
HOSTILE = {
    "clipboard": "parcel \x1b]52;c;ZXZpbA==\x1b\\",
    "link": "parcel \x1b]8;;https://evil.example\x1b\\free\x1b]8;;\x1b\\",
    "title": "parcel \x1b]0;root@host\x07",
    "clear screen": "parcel \x1b[2J\x1b[H",
    "conceal": "parcel \x1b[8mhidden",
    "C1": "parcel \x9b2J\x9d52;c;ZXZpbA==\x9c",
    "device status": "parcel \x1b[6n\x1bP$q\x1b\\",
    "carriage return": "parcel evil\rgood",
    "backspace": "parcel evil\b\b\b\bgood",
    "delete": "parcel \x7f",
    "turned": "parcel \u202egnp.exe\u2066 \u061c",
    "no width": "par\u200bcel \ufeff\u2060\u00ad",
    "tags": "parcel " + "".join(chr(0xE0000 + ord(c)) for c in "rm -rf"),
    "variation selectors": "parcel " + "".join(chr(0xE0100 + n) for n in range(9)) + "\ufe00",
    "fillers": "parcel \u3164\u115f\u034f\u2800",
    "line separators": "parcel \u2028\u2029\x85\x0b\x0c",
    "stacked": "parcel e" + "\u0301" * 200,
    "half a pair": "parcel \ud83d",
    "markup": "parcel [bold red]x[/bold red]",
    "markup link": "parcel [link=https://evil.example]free[/link]",
    "markup link, escaped": "parcel \\[link=https://evil.example]free\\[/link]",
    "closing": "parcel [/x]",
    "closing, escaped": "parcel \\[/x]",
    "closing all": "parcel [/]",
    "emoji code": "parcel :skull:",
    "callback": "parcel [@click=app.bell]x[/]",
}
# What rich itself writes for colours and live lines; hostile texts hold none of these but the colours.
_RICH = re.compile(r"\x1b\[(\?25[lh]|2K|1A|[0-9;]*m)|\r(?=\x1b\[(2K|1A))")


def is_plain(written: str) -> bool:
    """Nothing in it that a terminal obeys, beside what rich writes for its own."""
    rest = _RICH.sub("", written)
    return readable(rest) == rest and "\x1b[8m" not in written and "\x1b]" not in written


Door = Callable[[PlainConsole, str], None]


def _table(console: PlainConsole, words: str) -> None:
    output.show([{"what": words, words: 1}], Format.table)


def _status(console: PlainConsole, words: str) -> None:
    with console.status(words):
        pass


def _progress(console: PlainConsole, words: str) -> None:
    with output.progress(words, 2) as update:
        update(1, note=words)


def _fail(console: PlainConsole, words: str) -> None:
    with pytest.raises(SystemExit):
        output.fail(words)


def _start(console: PlainConsole, words: str) -> None:
    with local_run.StartDisplay(console) as display:
        display.on_note(words)
        display.on_state({"kafka": local_run.State(words)})


def _say(console: PlainConsole, words: str) -> None:
    Stage(Settings(), None, console).say(words, "green")  # type: ignore[arg-type]


def _bar(console: PlainConsole, words: str) -> None:
    stage = Stage(Settings(), None, console)  # type: ignore[arg-type]
    with stage.bar() as bars:
        bars.add_task(readable(words), total=2, note="")


def _cells(console: PlainConsole, words: str) -> None:
    table = Table(title=words)
    table.add_column(words)
    table.add_row(words)
    console.print(table)


def _defect(console: PlainConsole, words: str) -> None:
    def defect() -> None:
        raise ZeroDivisionError(words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command_line, "command_line", lambda words: defect)
        patch.setattr(command_line, "keep_private", lambda: None)
        patch.setattr(sys, "excepthook", None)
        with pytest.raises(ZeroDivisionError) as raised:
            command_line.main()
        sys.excepthook(ZeroDivisionError, raised.value, None)


DOORS: dict[str, Door] = {
    "table": _table, "message": lambda console, words: console.print(words), "status": _status, "progress": _progress,
    "error": _fail, "start": _start, "demo": _say, "demo's bar": _bar, "any table": _cells, "defect": _defect,
}  # fmt: skip
LIVE = ("status", "progress", "demo's bar", "start")  # drawn over and over: the words come in pieces


@pytest.fixture(params=[True, False], ids=["terminal", "pipe"])
def console(request, monkeypatch) -> PlainConsole:
    made = PlainConsole(file=io.StringIO(), force_terminal=request.param, width=300)
    monkeypatch.setattr(output, "err", made)
    monkeypatch.setattr(output, "out", made)
    monkeypatch.setattr(command_line, "err", made)
    return made


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", HOSTILE)
def test_words_are_shown_and_not_obeyed(name: str, door: str, console: PlainConsole, capsys) -> None:
    DOORS[door](console, HOSTILE[name])
    written = console.file.getvalue() + capsys.readouterr().out  # type: ignore[attr-defined]
    assert is_plain(written), repr(written)
    if door not in LIVE:
        assert "par" in written
        if HOSTILE[name].isascii() and HOSTILE[name].isprintable():
            assert HOSTILE[name] in written, "markup is words like any other"


@pytest.mark.parametrize("name", HOSTILE)
def test_json_is_exact_and_escaped(name: str, capsys) -> None:
    output.show([{"what": HOSTILE[name], "kanji": "荷物 ü"}], Format.json)
    written = capsys.readouterr().out
    assert is_plain(written) and "荷物 ü" in written
    assert json.loads(written) == [{"what": HOSTILE[name], "kanji": "荷物 ü"}]


@pytest.mark.parametrize("text", ["Wo ist mein Paket?", "荷物はどこ？", "Tiếng Việt", "ที่ไหน", "שלום", "👍 ❤\ufe0f", "a\n\tb", "[1, 2]"])
def test_honest_words_stay_as_they_are(text: str) -> None:
    assert readable(text) == text


def in_a_terminal(folder: Path, *words: str) -> str:
    """What `tuneloop WORDS` writes to a real pseudo-terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "deploy.cli.main", *words]
    with subprocess.Popen(command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs):
        os.close(theirs)
        written = b""
        while True:
            try:
                more = os.read(ours, 65_536)
            except OSError:  # Linux says EIO where the other side is closed
                break
            if not more:
                break
            written += more
    os.close(ours)
    return written.decode().replace("\r\n", "\n")


def test_a_settings_file_from_a_stranger(tmp_path) -> None:
    evil = "\\u001b]52;c;eA==\\u0007[/x]\\u202e"
    (tmp_path / "tuneloop.toml").write_text(
        f'data_dir = "d{evil}"\nkafka_bootstrap = "k{evil}"\n[models."m{evil}"]\nquality_metric = "q{evil}"\n'
    )
    for words in (["config", "show"], ["config", "show", "--format", "json"], ["config", "path"], ["status"]):
        written = in_a_terminal(tmp_path, *words)
        assert is_plain(written) and ("[/x]" in written), repr(written)


def test_a_log_is_read_not_obeyed(tmp_path) -> None:
    logs = tmp_path / ".tuneloop" / "logs"
    logs.mkdir(parents=True)
    (logs / "work.log").write_bytes("".join(f"{text}\n" for text in HOSTILE.values()).encode(errors="surrogatepass"))
    written = in_a_terminal(tmp_path, "logs", "work")
    assert is_plain(written) and written.count("par") >= len(HOSTILE)


def test_a_usage_error_quotes_and_does_not_obey(tmp_path) -> None:
    for words in (["\x1b]52;c;eA==\x07"], ["data", "export", "--kind", "\x9b2J"], ["--config", "\x1b[2J\u202e"], ["logs", "\x1b[2J"]):
        assert is_plain(in_a_terminal(tmp_path, *words))


SECRET = "s3cr3t"
ADDRESSES = {
    f"http://user:{SECRET}@host:8123": "http://host:8123",
    f"https://{SECRET}@host": "https://host",
    f"http://user:{SECRET}@[::1]:8123/x": "http://[::1]:8123/x",
    f"http://us/er:{SECRET}/w@host:8123": "http://host:8123",
    f"http://user:a/{SECRET}@host:8123": "http://host:8123",
    f"http://user:{SECRET}?x@host:8123/db": "http://host:8123/db",
    f"http://user:{SECRET}#x@host": "http://host",
    f"http://user:{SECRET}@x@host": "http://host",
    f"http://host:8123/?password={SECRET}&database=d": "http://host:8123/?password=…&database=d",
    f"s3://KEY:{SECRET}@bucket/x?region=eu&secret_key={SECRET}": "s3://bucket/x?region=eu&secret_key=…",
    f"user:{SECRET}@broker:9092,user:{SECRET}@other:9092": "broker:9092,other:9092",
    f"HTTP://user:{SECRET}@host": "HTTP://host",
    "http://127.0.0.1:8123": "http://127.0.0.1:8123",
    "broker:9092,other:9092": "broker:9092,other:9092",
    "/data/a@b": "/data/a@b",
    "s3://bucket/a@b": "s3://bucket/a@b",
    "": "",
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_shown_without_its_secrets(address: str) -> None:
    assert shown(address) == ADDRESSES[address]


def name_of(address: str) -> str:
    """The setting that such an address is given in."""
    return "artifacts" if address.startswith("s3") else "clickhouse_url" if "://" in address else "kafka_bootstrap"


@pytest.mark.parametrize("address", [address for address in ADDRESSES if SECRET in address])
def test_no_command_shows_them(address: str, tmp_path, monkeypatch, capsys, console) -> None:
    given = {"kafka_bootstrap": "127.0.0.1:9", "clickhouse_url": "http://127.0.0.1:9", name_of(address): address}
    try:
        settings = Settings(data_dir=str(tmp_path), sources={name_of(address): "flag"}, http_port=9, allow_plaintext=True, **given)  # type: ignore[arg-type]
    except SettingsError as error:  # most are not even taken
        assert SECRET not in str(error)
        return
    monkeypatch.setattr(Context, "settings", settings)
    monkeypatch.setattr("deploy.local.kafka.ready", lambda *_, **__: False)
    for ask in (lambda: config.show_config(Format.table), lambda: config.show_config(Format.json)):
        ask()
    written = console.file.getvalue() + capsys.readouterr().out + str(local_run.where(settings))
    written += "\n".join(local_run.in_force(settings))
    for ask in (lambda: context.bootstrap, lambda: local_run.check_given(settings)):
        with pytest.raises(RuntimeError) as raised:
            ask()
        written += str(raised.value)
    assert SECRET not in written and "127.0.0.1:9" in written


@pytest.mark.parametrize("address", [address for address in ADDRESSES if SECRET in address and "://" in address])
def test_no_log_and_no_error_shows_them(address: str, console) -> None:
    with pytest.raises(SystemExit):
        output.fail(f"no answer at {address}: is it up?")
    record = logging.LogRecord("x", logging.ERROR, "", 1, "no answer at %s", (address,), None)
    try:
        raise RuntimeError(address)
    except RuntimeError:
        record.exc_info = sys.exc_info()
    assert SECRET not in console.file.getvalue() + WithoutSecrets("%(message)s").format(record)
