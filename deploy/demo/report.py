"""The end of the demo: its figures from ClickHouse, checked against the client's own count, and what to try."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from clickhouse_connect.driver.client import Client
from rich.table import Table

from deploy.addresses import addresses
from deploy.clickhouse_login import writer
from deploy.demo import figures
from deploy.demo.chart import draw
from deploy.demo.desk import Desk
from deploy.demo.memory import PeakMemory
from deploy.demo.stage import MODEL, DemoError, Stage
from streams.artifacts import open_store
from streams.clickhouse import connect, rows
from streams.register import read_registry


def report(stage: Stage, desk: Desk, memory: PeakMemory, pace: float, out_dir: Path) -> dict[str, Any]:
    """Figures, table, picture and what to try next; returns the figures. Raises `DemoError`."""
    where = addresses(stage.settings)
    client = connect(where.clickhouse, login=writer(stage.settings))
    live = figures.live_accuracy(client, MODEL, stage.shift_ms, len(stage.plan.after))
    _compare_with_client(stage, desk, live)
    at = {"shift": stage.shift_ms, **figures.moments(client, MODEL)}
    seconds = _seconds(stage, client, at)
    stage.say(f"the background client kept up {pace:.1f} questions a second; reading the held-out questions")
    states, bases = read_registry(where.bootstrap)
    policy = stage.settings.models[MODEL]
    heldout = figures.heldout_accuracy(
        [entry for entry in states[MODEL].versions if entry.version in (1, 2)], bases[policy.base].path,
        open_store(*stage.settings.artifact_place), stage.plan.heldout, policy.max_tokens,
    )
    picture = draw(client, MODEL, at, out_dir / "live_accuracy.png")
    jobs = rows(client, "SELECT count() AS n FROM tuneloop.job_requested FINAL WHERE model = {m:String}", m=MODEL)
    seconds["total"] = time.monotonic() - stage.began
    result = {
        "live_accuracy": {name: _rounded(value["value"]) for name, value in live.items()},
        "heldout": {group: {v: _rounded(share) for v, share in by.items()} for group, by in heldout.items()},
        "requests": desk.requests, "failed_requests": len(desk.failures), "jobs": jobs[0]["n"],
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "peak_rss_gb": round(memory.stop(), 2),
    }
    _table(stage, live, result, picture)
    for failure in desk.failures[:5]:
        stage.say(f"failed: {failure}", "red")
    (out_dir / "figures.json").write_text(json.dumps({**result, "live_with_intervals": live}, indent=2))
    return result


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _seconds(stage: Stage, client: Client, at: dict[str, int]) -> dict[str, float]:
    met = figures.last_condition_ms(client, MODEL, at["drift"], stage.settings.models[MODEL].min_new_examples)
    spans = {
        "shift_to_drift": ("shift", "drift"), "drift_waited": ("drift", "met"), "drift_to_job": ("met", "job_started"),
        "job_to_candidate": ("job_started", "candidate"), "candidate_to_gate": ("candidate", "gate_started"),
        "candidate_to_verdict": ("candidate", "verdict"), "verdict_to_served": ("verdict", "second_served"),
    }  # fmt: skip
    at = {**at, "met": met}
    seconds = {**stage.seconds, **{name: (at[end] - at[start]) / 1000 for name, (start, end) in spans.items()}}
    return {**seconds, "event_to_row_p99": figures.event_to_row_p99_s(client)}


def _compare_with_client(stage: Stage, desk: Desk, live: dict[str, dict[str, Any]]) -> None:
    """ClickHouse's numbers must be the client's own. Raises `DemoError` where they differ."""
    before = [s for s in desk.scored[: len(stage.plan.before)] if s.version == 1]
    before = sorted(before, key=lambda s: s.inference_id)[-100:]
    drifted = [s for s in desk.scored[len(stage.plan.before) :] if s.version == 1]
    second = [s for s in desk.scored if s.version == 2]
    for name, mine in (("before", before), ("drifted", drifted), ("after", second)):
        counted = round((live[name]["value"] or 0) * live[name]["n"])
        right = sum(s.correct for s in mine)
        if (counted, live[name]["n"]) != (right, len(mine)):
            theirs = f"{counted} of {live[name]['n']}"
            raise DemoError(f"{name}: ClickHouse counts {theirs} right, the client {right} of {len(mine)}")
    stage.say(f"ClickHouse and the client agree on all {len(desk.scored)} scored answers")


def _table(stage: Stage, live: dict[str, dict[str, Any]], result: dict[str, Any], picture: Path) -> None:
    table = Table(title="what happened", title_justify="left", show_edge=False)
    for column in ("", "right", "n", "95% interval"):
        table.add_column(column)
    for name, value in live.items():
        interval = f"{value['low']:.3f} to {value['high']:.3f}"
        table.add_row(f"live, {name}", f"{value['value']:.3f}", str(value["n"]), interval)
    for group, by_version in result["heldout"].items():
        n = str(sum(question.old == (group == "old") for question in stage.plan.heldout))
        for version, value in by_version.items():
            table.add_row(f"held-out {group} intents, version {version}", f"{value:.3f}", n, "")
    stage.console.print(table)
    config = stage.settings.sources.get("models", "tuneloop.toml")
    stage.console.print(
        f"\nthe picture: {picture}\n\nit is stopped now; to look around in what it did:\n"
        f"  .venv/bin/tuneloop --config {config} up\n"
        f"  .venv/bin/tuneloop --config {config} sql 'SELECT * FROM lineage'\n"
        f"  .venv/bin/tuneloop --config {config} why support@2\n"
        f"  .venv/bin/tuneloop --config {config} models show support@2\n"
        f"  .venv/bin/tuneloop --config {config} down\n",
    )
