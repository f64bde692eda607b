"""The demo's plot: start, learn the old questions, serve them, meet new ones, drift, learn, recover.

Nothing here makes the system learn: it imports, asks and gives feedback like any application, and otherwise
watches what the consumers do on their own.
"""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clickhouse_connect.driver.client import Client
from rich.progress import Progress, TaskID

from deploy import local_run
from deploy.addresses import Addresses, addresses
from deploy.cli.data import submit
from deploy.clickhouse_login import writer
from deploy.demo import figures
from deploy.demo.desk import Background, Desk
from deploy.demo.memory import PeakMemory
from deploy.demo.report import report
from deploy.demo.stage import MODEL, DemoError, Stage
from deploy.importing import Columns, Refusal, read
from deploy.local import supervise
from deploy.shown import readable
from streams import kafka
from streams.clickhouse import connect, rows

CURATED_FILE = "curated.csv"
# How long a job may take, from the data to the version that serves; minutes on two cores that do nothing else.
JOB_S = 600
# How often it looks whether something has happened: each look is a query or three.
LOOK_S = 0.5


def play(stage: Stage, out_dir: Path) -> dict[str, Any]:
    """The whole run; returns the figures. Raises `DemoError`, and leaves nothing running behind."""
    memory = PeakMemory(stage.settings.data)
    try:
        start(stage)
        memory.start()
        desk, pace = loop_once(stage)
        return report(stage, desk, memory, pace, out_dir)
    finally:
        supervise.stop(stage.settings.data)


def loop_once(stage: Stage, background_per_s: float = 3.0) -> tuple[Desk, float]:
    """All acts on a system that is up; returns the desk and the background client's questions a second."""
    where = addresses(stage.settings)
    client = connect(where.clickhouse, login=writer(stage.settings))
    desk = Desk(where.http, MODEL)
    background = Background(desk, [question.text for question in stage.plan.curated], background_per_s)
    background.start()
    first_model(stage, where, client)
    ask_old_questions(stage, client, desk)
    shift(stage, client, desk)
    recover(stage, client, desk)
    return desk, background.stop()


def start(stage: Stage) -> None:
    plan, settings = stage.plan, stage.settings
    if supervise.is_running(settings.data):
        supervise.stop(settings.data)
    shutil.rmtree(settings.data, ignore_errors=True)
    counts = ", ".join(f"{count} {use}" for use, count in plan.counts().items())
    stage.say(f"playing {plan.name}: {len(plan.old)} old and {len(plan.new)} new intents; {counts}")
    began = time.monotonic()
    with local_run.StartDisplay(stage.console) as display:
        local_run.up(settings, display.on_state, display.on_note, 240)
    stage.seconds["up"] = time.monotonic() - began
    stage.say(f"Kafka, ClickHouse, Ray Serve and nine consumers are up ({stage.seconds['up']:.0f} s)")


def first_model(stage: Stage, where: Addresses, client: Client) -> None:
    began = time.monotonic()
    path = stage.settings.data / CURATED_FILE
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["text", "category"])
        writer.writerows([question.text, question.intent] for question in stage.plan.curated)
    producer, failed = kafka.producer(where.bootstrap), []  # type: ignore[var-annotated]
    for record in read(path, MODEL, Columns("text", "category")):
        if isinstance(record, Refusal):
            raise DemoError(f"{path}: row {record.row}: {record.field}: expected {record.expected}")
        submit(producer, record, failed)
    producer.flush(30)
    stage.say(f"{len(stage.plan.curated)} curated examples of the old intents submitted; the first job is due")
    if not _follow_job(stage, client, version=1):
        raise DemoError("the first candidate was refused; see `tuneloop jobs ls`")
    stage.seconds["first_model"] = time.monotonic() - began
    stage.say(f"version 1 serves ({stage.seconds['first_model']:.0f} s from the first example)", "green")


def _follow_job(stage: Stage, client: Client, version: int) -> bool:
    """Show a job's progress until `version` answers; False where its candidate is refused. Raises `DemoError`."""
    with stage.bar() as bars:
        task = bars.add_task("waiting for the job", total=None, note="")
        deadline = time.monotonic() + JOB_S
        refused = len(_decisions(client, "refused"))
        while time.monotonic() < deadline:
            if _loaded(client, version):
                return True
            if len(again := _decisions(client, "refused")) > refused:
                stage.say(f"a candidate was refused: {again[-1]['reason']}", "yellow")
                return False
            _show_progress(client, bars, task)
            time.sleep(LOOK_S)
    raise DemoError(f"version {version} did not serve within {JOB_S} s; see {stage.settings.data}/logs")


def _loaded(client: Client, version: int) -> bool:
    query = (
        "SELECT count() AS n FROM tuneloop.adapter_loaded "
        "WHERE model = {m:String} AND version = {v:Int64} AND loaded"
    )
    return bool(rows(client, query, m=MODEL, v=version)[0]["n"])


def _decisions(client: Client, decision: str) -> list[dict[str, Any]]:
    query = "SELECT reason, ts FROM tuneloop.decision_made FINAL WHERE model = {m:String} AND decision = {d:String}"
    return rows(client, query + " ORDER BY ts", m=MODEL, d=decision)


def _show_progress(client: Client, bars: Progress, task: TaskID) -> None:
    last = rows(
        client,
        "SELECT phase, step, steps, loss, time_left_s FROM tuneloop.job_progressed WHERE model = {m:String} "
        "ORDER BY ts DESC LIMIT 1",
        m=MODEL,
    )
    if last and last[0]["steps"]:
        row = last[0]
        loss = f"loss {row['loss']:.3f}" if row["loss"] is not None else ""
        left = f", {row['time_left_s']:.0f} s left" if row["time_left_s"] is not None else ""
        phase = readable(row["phase"])
        bars.update(task, description=phase, total=row["steps"], completed=row["step"], note=loss + left)


def _ask(stage: Stage, desk: Desk, questions: Any, label: str, enough: Callable[[], bool] = lambda: False) -> int:
    with stage.bar() as bars:
        task = bars.add_task(label, total=len(questions), note="")

        def on_each(done: int) -> None:
            recent = desk.scored[-50:]
            right = sum(scored.correct for scored in recent) / max(1, len(recent))
            bars.update(task, completed=done, note=f"{right:.0%} right of the last {len(recent)}")

        return desk.serve_all(questions, on_each, enough)


def ask_old_questions(stage: Stage, client: Client, desk: Desk) -> None:
    stage.say("customers ask about the old intents; the desk scores every answer")
    _ask(stage, desk, stage.plan.before, "old questions")
    right = [scored.correct for scored in desk.scored[-100:]]
    stage.say(f"{sum(right) / len(right):.0%} of the last {len(right)} answers were right")
    _until(stage, lambda: _landed(client) >= len(desk.scored), "the scores to land")


def _landed(client: Client) -> int:
    query = "SELECT count() AS n FROM tuneloop.scored_answers WHERE model = {m:String}"
    return int(rows(client, query, m=MODEL)[0]["n"])


def _until(stage: Stage, happened: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        if time.monotonic() > deadline:
            raise DemoError(f"waited {timeout_s:.0f} s for {what}; see {stage.settings.data}/logs")
        time.sleep(LOOK_S)


def shift(stage: Stage, client: Client, desk: Desk) -> None:
    """Ask until a job was asked for: nobody but the system decides when that is."""
    stage.shift_ms = int(time.time() * 1000)
    stage.say(f"new intents take over most of the traffic: {', '.join(stage.plan.new[:3])}, …", "bold")
    seen: dict[str, Any] = {"drift": False, "waits": set()}

    def enough() -> bool:
        found = figures.moments(client, MODEL, "drift", "requested")
        _say_what_it_waits_for(stage, client, seen)
        if "drift" in found and not seen["drift"]:
            seen["drift"] = True
            row = rows(client, "SELECT baseline, current FROM tuneloop.drift_detected LIMIT 1")[0]
            fell = f"quality at {row['current']:.0%}, baseline at least {row['baseline']:.0%}"
            stage.say(f"drift detected: {fell}", "red")
        return "requested" in found

    stage.asked = _ask(stage, desk, stage.plan.drifted, "mixed questions", enough)
    _until(stage, lambda: bool(figures.moments(client, MODEL, "drift")), "the drift to be detected")
    try:
        _until(stage, enough, "the job to be asked for", 20)
    except DemoError as error:
        waits = rows(client, "SELECT waits_for FROM tuneloop.job_deferred ORDER BY ts DESC LIMIT 1")
        raise DemoError(f"{error} (the drift waits for {waits})") from error
    stage.say("enough new examples: a job was asked for; a candidate is trained while the desk goes on serving")


def _go_on(stage: Stage, client: Client, desk: Desk) -> None:
    """A refused drift stays open: the desk goes on until there is enough for another job."""
    left = stage.plan.drifted[stage.asked :]
    if not left:
        raise DemoError("every candidate was refused, and there are no more questions; see `tuneloop jobs ls`")
    stage.say("the drift stays open; the desk goes on, and the next job waits for half again as many new examples")
    jobs, seen = _jobs(client), {"waits": set[str]()}

    def enough() -> bool:
        _say_what_it_waits_for(stage, client, seen)
        return _jobs(client) > jobs

    stage.asked += _ask(stage, desk, left, "mixed questions", enough)
    _until(stage, enough, "the next job to be asked for", 20)


def _jobs(client: Client) -> int:
    query = "SELECT count() AS n FROM tuneloop.job_requested FINAL WHERE model = {m:String}"
    return int(rows(client, query, m=MODEL)[0]["n"])


def _say_what_it_waits_for(stage: Stage, client: Client, seen: dict[str, Any]) -> None:
    """Each thing that a job waits for once, as the system says it."""
    for row in rows(client, "SELECT waits_for FROM tuneloop.job_deferred ORDER BY ts DESC LIMIT 1"):
        for what, how in json.loads(row["waits_for"]).items():
            if what not in seen["waits"]:
                seen["waits"].add(what)
                stage.say(f"a job waits for {what}: {how}")


def recover(stage: Stage, client: Client, desk: Desk) -> None:
    while not _follow_job(stage, client, version=2):
        _go_on(stage, client, desk)
    verdict = rows(client, "SELECT reason FROM tuneloop.verdict_reached WHERE passed ORDER BY ts DESC LIMIT 1")
    stage.say(f"the gate: {verdict[0]['reason'] if verdict else '-'}")
    _until(stage, lambda: desk.latest_version >= 2, "an answer of version 2", 30)
    stage.say("version 2 was promoted and serves; the mixed questions go on", "green")
    _ask(stage, desk, stage.plan.after, "mixed questions")
    _until(stage, lambda: _landed(client) >= len(desk.scored), "the scores to land")
