"""`tuneloop dlq`: the dead letters: what was refused and why, and putting it back once the cause is mended.

Bodies are people's words: `show` alone prints them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from deploy.cli.context import context
from deploy.cli.output import CommandError, Format, err, progress, show
from deploy.shown import readable
from schemas.topics import CONSUMER_GROUPS
from streams import replay
from streams.replay import Letter, Move, Selection, parse_origin

app = typer.Typer(no_args_is_help=True, help="Dead letters: records that a consumer refused.")
Group = Annotated[str | None, typer.Argument(metavar="GROUP", help=", ".join(CONSUMER_GROUPS))]
What = Annotated[
    list[str] | None, typer.Argument(metavar="GROUP ORIGIN", help="a group; topic/partition/offset of letters")
]
All = Annotated[bool, typer.Option("--all", help="every letter (of the group)")]
Reason = Annotated[str, typer.Option("--reason", help="the letters with this text in their reason")]
BODY_CHARACTERS, LISTED_CHARACTERS = 2_000, 120


def parted(what: Sequence[str] | None) -> tuple[str | None, frozenset[str]]:
    """The group, if one was named, and the origins. Raises `CommandError` for what is neither."""
    words = list(what or ())
    group = words.pop(0) if words and "/" not in words[0] else None
    if group is not None and group not in CONSUMER_GROUPS:
        raise CommandError(f"no consumer group {group!r}; there are: {', '.join(CONSUMER_GROUPS)}")
    for word in words:
        if parse_origin(word) is None:
            raise CommandError(f"{word!r} is no origin: expected topic/partition/offset, as `dlq show` prints it")
    return group, frozenset(words)


def _letters(group: str | None) -> list[Letter]:
    return replay.read(context.bootstrap, (group,) if group else CONSUMER_GROUPS)


def _moment(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)


@app.command("ls")
def ls(group: Group = None, format: Format = Format.table) -> None:
    """How many letters each group has, by reason."""
    parted([group] if group else None)
    show(counted(_letters(group)), format, "no dead letters")


def counted(letters: Sequence[Letter]) -> list[dict[str, Any]]:
    """A row for each group and reason, in the order of the groups, most letters first."""
    times: dict[tuple[str, str], list[int]] = {}
    for letter in letters:
        times.setdefault((letter.group, letter.reason), []).append(letter.refused_ms)
    ordered = sorted(times.items(), key=lambda item: (CONSUMER_GROUPS.index(item[0][0]), -len(item[1]), item[0][1]))
    return [
        {
            "group": group, "letters": len(at), "oldest": _moment(min(at)), "newest": _moment(max(at)),
            "reason": readable(reason),
        }
        for (group, reason), at in ordered
    ]  # fmt: skip


@app.command("show")
def show_letters(
    what: What = None,
    limit: Annotated[int, typer.Option(min=1, help="at most so many, newest first")] = 10,
    format: Format = Format.table,
) -> None:
    """Letters with their bodies, newest first; one of them in full where its origin is given."""
    group, origins = parted(what)
    chosen = [letter for letter in _letters(group) if not origins or letter.origin in origins]
    if origins and not chosen:
        raise CommandError(f"{_missing(origins)}: `tuneloop dlq ls` shows what there is")
    chosen.sort(key=lambda letter: letter.refused_ms, reverse=True)
    facts = [_facts(letter) for letter in chosen[:limit]]
    if format is Format.json:
        show(facts, format)
    elif origins:
        for fact in facts:
            headers = [{"field": f"header {name}", "value": value} for name, value in fact.pop("headers")]
            show([*({"field": name, "value": value} for name, value in fact.items()), *headers], format)
    else:
        show([_line(fact) for fact in facts], format, "no dead letters")
        if len(chosen) > limit:
            err.print(f"… and {len(chosen) - limit} older ones (--limit)")


def _facts(letter: Letter) -> dict[str, Any]:
    record = letter.original
    value = (record.value if record else None) or b""
    return {
        "origin": readable(letter.origin), "group": letter.group, "refused": _moment(letter.refused_ms),
        "said": _moment(record.timestamp_ms) if record else None, "reason": readable(letter.reason),
        # A key is bytes and nothing else: shown, never decoded.
        "key": repr(record.key)[2:-1] if record and record.key is not None else None,
        "bytes": len(value), "body": body(value, BODY_CHARACTERS),
        "headers": [[readable(name), body(content or b"", BODY_CHARACTERS)] for name, content in _headers(letter)],
    }  # fmt: skip


def _headers(letter: Letter) -> list[tuple[str, Any]]:
    return letter.original.headers if letter.original else []


def _line(fact: dict[str, Any]) -> dict[str, Any]:
    cut = " ".join(fact["body"][: LISTED_CHARACTERS + 1].split())
    return {
        **{name: fact[name] for name in ("origin", "group", "refused", "reason")},
        "body": cut if len(cut) <= LISTED_CHARACTERS else cut[:LISTED_CHARACTERS] + "…",
    }


def body(value: bytes, most: int) -> str:
    """Bytes as text for a person: what is no UTF-8 is replaced, what is too long is cut and says so."""
    text = readable(value[: 4 * most].decode(errors="replace"))
    return text if len(text) <= most and len(value) <= 4 * most else f"{text[:most]}… ({len(value)} bytes in all)"


@app.command("replay")
def replay_letters(what: What = None, all_: All = False, reason: Reason = "", format: Format = Format.table) -> None:
    """Put letters back where they came from, each exactly once; what is still bad comes back as a new letter."""
    group, selection = _selection(what, all_, reason)

    def choose(letters: list[Letter]) -> list[Move]:
        return replay.moves_back(_chosen(letters, group, selection), letters)

    _settle(choose, "putting back", "replayed", format)


@app.command("drop")
def drop_letters(
    what: What = None, all_: All = False, reason: Reason = "",
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False, format: Format = Format.table,
) -> None:
    """Delete letters for good."""
    group, selection = _selection(what, all_, reason)
    if not yes and not sys.stdin.isatty():
        raise CommandError("dropped letters are gone for good, and nobody is here to be asked: add --yes")

    def choose(letters: list[Letter]) -> list[Move]:
        chosen = _chosen(letters, group, selection)
        if chosen and not yes and not typer.confirm(f"drop {len(chosen)} dead letters for good?", err=True):
            raise CommandError("nothing was dropped")
        return replay.moves_away(chosen)

    _settle(choose, "dropping", "dropped", format)


def _selection(what: Sequence[str] | None, everything: bool, reason: str) -> tuple[str | None, Selection]:
    group, origins = parted(what)
    return group, Selection(origins, reason, everything)


def _chosen(letters: list[Letter], group: str | None, selection: Selection) -> list[Letter]:
    chosen = selection.of(letter for letter in letters if group in (None, letter.group))
    gone = selection.origins - {letter.origin for letter in chosen}
    if gone and not chosen:
        raise CommandError(f"{_missing(gone)}: replayed or dropped already? (`tuneloop dlq ls`)")
    if gone:
        err.print(f"{_missing(gone)}: left out")
    return chosen


def _missing(origins: frozenset[str]) -> str:
    first = min(origins)
    return f"no dead letter of {first}" + (f" and {len(origins) - 1} others" if len(origins) > 1 else "")


def _settle(choose: Callable[[list[Letter]], list[Move]], doing: str, done: str, format: Format) -> None:
    with ExitStack() as stack:
        bars = []

        def choose_first(letters: list[Letter]) -> list[Move]:  # a bar would write over the question
            moves = choose(letters)
            bars.append(stack.enter_context(progress(doing, len(moves))))
            return moves

        moves = replay.settle(context.bootstrap, choose_first, lambda count, total: bars[0](count, total))
    settled = [letter.group for move in moves for letter in move.letters]
    rows = [{"group": group, done: settled.count(group)} for group in CONSUMER_GROUPS if group in settled]
    show(rows, format, "no such dead letters: nothing to do")
