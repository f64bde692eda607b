"""`tuneloop models`: versions, their lineage and quality, and the way back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy import live_quality, version_lineage
from deploy.cli.commands import actor, decision_on, publish
from deploy.cli.context import context
from deploy.cli.output import CommandError, Format, err, show
from schemas.events import HoldRequested, ModelStateChanged, RollbackRequested, Version
from streams.clickhouse import rows
from streams.monitor.known import quality_of
from streams.register import read_registry
from streams.registry import find

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

# The share right, and of how many answers.
Live = tuple[float | None, int | None]
NOT_MEASURED: Live = (None, None)
app = typer.Typer(no_args_is_help=True, help="Models and their versions.")


def _states() -> dict[str, ModelStateChanged]:
    return read_registry(context.bootstrap)[0]


@app.command("ls")
def ls(format: Format = Format.table) -> None:
    """Every version of every configured model, with its live quality."""
    states = _states()
    live: dict[tuple[str, int], Live] = {}

    def ask(client: Client) -> list[str]:
        live.update(_live(client))
        return live_quality.unknown(client, context.settings.models)

    unknown = live_quality.in_time(lambda: context.clickhouse(writes=False), ask)
    table: list[dict[str, Any]] = []
    for name, policy in context.settings.models.items():
        state = states.get(name)
        champion = state.champion if state else 0
        table.append(_row(name, 0, champion, policy.base, None, live))
        table += [_row(name, v.version, champion, v.base, v, live) for v in (state.versions if state else [])]
    show(table, format)
    for line in unknown:
        err.print(line)
    for name, state in states.items():
        if state.held:
            err.print(f"{name} is held ({state.held}); `tuneloop models resume {name}` lets it go on")


def _live(client: Client) -> dict[tuple[str, int], Live]:
    """How each version of each model did when it was last measured."""
    found = rows(
        client,
        "SELECT model, version, argMax(tuple(recent_quality), ts).1 AS quality, argMax(recent_n, ts) AS n "
        "FROM tuneloop.performance_measured GROUP BY model, version",
    )
    return {(row["model"], row["version"]): (row["quality"], row["n"]) for row in found}


def _row(
    model: str, version: int, champion: int, base: str, entry: Version | None, live: dict[tuple[str, int], Live]
) -> dict[str, Any]:  # fmt: skip
    quality, n = live.get((model, version), NOT_MEASURED)
    status = "champion" if version == champion else (entry.status if entry else "base")
    return {
        "version": f"{model}@{version}", "status": status, "base": base,
        "adapter": entry.digest[:12] if entry else None, "live_quality": quality, "n": n,
        "job": entry.job_id if entry else None,
    }  # fmt: skip


@app.command("show")
def show_model(
    name: Annotated[str, typer.Argument(help="NAME or NAME@VERSION")],
    lineage: Annotated[bool, typer.Option("--lineage", help="what it was made from, shard by shard")] = False,
    format: Format = Format.table,
) -> None:
    """One version: its verdict with every number, its data and its history."""
    model, _, number = name.partition("@")
    state = _states().get(model)
    if state is None:
        raise CommandError(f"{model!r} has no version yet; `tuneloop models ls` shows the configured models")
    version = state.champion if number in ("", "champion") else int(number) if number.isdecimal() else -1
    entry = find(state, version)
    if entry is None:
        have = ", ".join(str(v.version) for v in state.versions)
        raise CommandError(f"{model} has no version {number!r}; there are: {have}")
    client = context.clickhouse()
    if lineage:
        _show_lineage(version_lineage.version_lineage(client, context.store, model, entry), format)
        return
    found = rows(
        client, "SELECT checks, reason, ts FROM tuneloop.verdict_reached FINAL WHERE digest = {digest:String}",
        digest=entry.digest,
    )
    checks = json.loads(found[0]["checks"]) if found else []
    live = _live(client).get((model, entry.version), NOT_MEASURED)
    facts = {**_facts(model, entry, live), "quality is known": quality_of(client, model).why or "yes"}
    if format is Format.json:
        show([{**facts, "checks": checks}], format)
        return
    show([{"field": key, "value": value} for key, value in facts.items()], format)
    show(checks, format, "no check is on record")


def _show_lineage(found: dict[str, Any], format: Format) -> None:
    if format is Format.json:
        show([found], format)
        return
    show(version_lineage.facts(found), format)
    show(version_lineage.shard_table(found), format)


def _facts(model: str, entry: Version, live: Live) -> dict[str, Any]:
    return {
        "version": f"{model}@{entry.version}", "status": entry.status, "base": entry.base, "adapter": entry.digest,
        "path": entry.path, "job": entry.job_id, "drift": entry.drift_id or None,
        "new rows": entry.new_data.rows, "replayed rows": entry.replay_data.rows if entry.replay_data else 0,
        "live quality": live[0], "live n": live[1],
        "learned from rows erased by": ", ".join(entry.erasures) or None,
    }  # fmt: skip


@app.command("rollback")
def rollback(
    name: Annotated[str, typer.Argument(help="NAME, or NAME@VERSION to go to that one (0 = the base)")],
    reason: str = "asked for on the command line",
) -> None:
    """Serve an earlier version again: the previous champion, or the one named."""
    model, _, number = name.partition("@")
    if number and not number.isdecimal():
        raise CommandError(f"{number!r} is no version number; give {model}@N")
    state = _states().get(model)
    if state is None:
        raise CommandError(f"{model!r} has no version yet: there is nothing to roll back")
    command = RollbackRequested(
        model=model, to_version=int(number or -1), epoch=state.epoch, reason=reason, actor=actor()
    )
    decision = decision_on(context.clickhouse(), publish(context.bootstrap, command))
    if decision["decision"] != "rolled-back":
        raise CommandError(f"refused: {decision['reason']}")
    err.print(f"{model}@{decision['version']} serves again, in place of {model}@{decision['previous']}")


@app.command("hold")
def hold(model: str, because: Annotated[str, typer.Option(help="the reason, for the history")]) -> None:
    """From now on no job, promotion or rollback of this model by itself, until it is let go on."""
    _hold(HoldRequested(model=model, hold=True, reason=because, actor=actor()))


@app.command("resume")
def resume(model: str, because: Annotated[str, typer.Option(help="the reason, for the history")] = "") -> None:
    """Let a held model go on."""
    _hold(HoldRequested(model=model, hold=False, reason=because, actor=actor()))


def _hold(command: HoldRequested) -> None:
    if command.model not in context.settings.models:
        raise CommandError(f"no model {command.model!r} is configured; known: {', '.join(context.settings.models)}")
    state = _states().get(command.model)
    if bool(state and state.held) == command.hold:
        raise CommandError(f"{command.model} {'is held already' if command.hold else 'is not held'}")
    decision = decision_on(context.clickhouse(), publish(context.bootstrap, command))
    goes = "no job, promotion or rollback by itself" if command.hold else "it goes on"
    err.print(f"{command.model} is {decision['decision']}: {goes}")


@app.command("history")
def history(name: str, format: Format = Format.table) -> None:
    """Every decision the registry took on a model."""
    found = rows(
        context.clickhouse(),
        "SELECT ts, decision, version, previous, reason, job_id, actor FROM tuneloop.decision_made FINAL "
        "WHERE model = {model:String} ORDER BY ts",
        model=name,
    )
    show(found, format, f"no decision on {name!r} yet")
