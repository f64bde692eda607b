"""The processes: what each one runs, wired from the settings. `tuneloop run NAME` is one of these, in front.

Each shares nothing with the others but topics, ClickHouse and the artifact store. `python -m deploy.processes NAME` is
the same without the command line's imports, which would cost each of them 60 MB.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from deploy import settings as settings_module
from deploy.addresses import addresses, credentials, identity_secret, use_credentials
from deploy.local.folders import data_folder, keep_private, own_folder
from deploy.settings import Settings
from deploy.shown import WithoutSecrets, without_secrets
from schemas.identity import InferenceIds, key_id, split_key
from streams import kafka, metrics, watchdog
from streams.dead_letters import Budget

if TYPE_CHECKING:  # it brings pyarrow, which half of the processes never need
    from streams.artifacts import ArtifactStore

log = logging.getLogger(__name__)
CONSUMERS = ("prepare", "join-feedback", "monitor", "conduct", "work", "gate", "register", "erase", "serve")


def ready_file(settings: Settings, name: str) -> Path:
    """Written by a process once it is about to take its first record."""
    return settings.data / "run" / "ready" / name


def run(name: str, settings: Settings) -> None:
    """Run one process until SIGTERM or SIGINT. Raises what ends it."""
    keep_private()
    logs = logging.StreamHandler(sys.stderr)
    logs.setFormatter(WithoutSecrets("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[logs])
    data_folder(settings.data)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if name != "serve":  # its replicas are processes of their own: /metrics on the HTTP port
        metrics.listen(name, settings.metrics_host, settings.metrics_port)
    use_credentials(settings)
    identity_secret(settings)  # none goes on without: what it cannot prove or recognise shows only much later
    kafka.ensure_topics(addresses(settings).bootstrap, settings.replication_factor)
    _RUNNERS[name](settings, stop)


def _say_ready(settings: Settings, name: str) -> None:
    path = ready_file(settings, name)
    own_folder(path.parent).joinpath(name).write_text("ready\n")
    if name != "serve":
        metrics.heartbeat()
        watchdog.watch(metrics.silent_s)
    log.info("%s is ready", name)


def _budget(settings: Settings) -> Budget:
    return Budget(settings.max_refused)


def _store(settings: Settings) -> ArtifactStore:
    from streams.artifacts import open_store

    return open_store(*settings.artifact_place)


def _prepare(settings: Settings, stop: threading.Event) -> None:
    from streams import transact
    from streams.erased import Erased
    from streams.prepare.step import GROUP, PrepareStep, read_committed
    from streams.prepare.workers import WorkerPool

    bootstrap = addresses(settings).bootstrap
    secret = identity_secret(settings)
    erased = Erased(bootstrap, secret, _store(settings))
    step = PrepareStep(
        settings.models, _store(settings), lambda: read_committed(bootstrap), split_key(secret), erased=erased,
        budget=_budget(settings),
        workers=WorkerPool(settings.models, split_key(secret), settings.prepare_helpers),
    )  # fmt: skip
    _say_ready(settings, GROUP)
    transact.run(
        bootstrap, GROUP, ["training.raw"], step, stop, transactional_id="tuneloop-prepare-0",
        linger_s=settings.prepare_linger_s,
    )


def _register(settings: Settings, stop: threading.Event) -> None:
    from streams import transact
    from streams.register import GROUP, TOPICS, RegisterStep

    bootstrap = addresses(settings).bootstrap
    _register_shipped_bases(settings, bootstrap)
    _say_ready(settings, GROUP)
    step = RegisterStep(bootstrap, settings.models, _store(settings), _budget(settings))
    transact.run(
        bootstrap, GROUP, TOPICS, step, stop, transactional_id="tuneloop-register", after_commit=step.sweep
    )


def _register_shipped_bases(settings: Settings, bootstrap: str) -> None:
    """Ask for the shipped bases that a model uses and the registry does not know yet."""
    from deploy.bases.add import SHIPPED, take_in
    from streams.register import read_registry

    _, known = read_registry(bootstrap)
    wanted = {policy.base for policy in settings.models.values()} & SHIPPED.keys()
    client = kafka.producer(bootstrap)
    for name in sorted(wanted - known.keys()):
        command = take_in(name, str(SHIPPED[name]), _store(settings))
        kafka.produce(client, kafka.out(command, source="register", subject=name))
    client.flush(15)


def _monitor(settings: Settings, stop: threading.Event) -> None:
    from streams import sink
    from streams.clickhouse import connect
    from streams.erased import Erased
    from streams.monitor.land import GROUP, LANDED_TOPICS, ClickHouseStore
    from streams.monitor.measure import Measurer, note_policies
    from streams.monitor.migrate import migrate

    where = addresses(settings)
    migrate(connect(where.clickhouse))
    note_policies(connect(where.clickhouse), settings.models)
    measurer = Measurer(
        connect(where.clickhouse), settings.models, kafka.producer(where.bootstrap, linger_ms=0),
        key=split_key(identity_secret(settings)),
    )  # fmt: skip
    _in_thread(measurer.run, stop)
    _say_ready(settings, GROUP)
    erased = Erased(where.bootstrap, identity_secret(settings), _store(settings))
    store = ClickHouseStore(
        connect(where.clickhouse), kafka.producer(where.bootstrap), _budget(settings), erased,
        InferenceIds(identity_secret(settings)), GROUP,
    )  # fmt: skip
    sink.run(where.bootstrap, GROUP, LANDED_TOPICS, store, stop, instance="tuneloop-monitor-0")


def _in_thread(target: Callable[[threading.Event], None], stop: threading.Event) -> None:
    """Run `target` beside the main loop; if it fails the whole process ends, to be started again."""

    def body() -> None:
        try:
            target(stop)
        except Exception:
            log.exception("%s failed", target)
            stop.set()
            raise

    threading.Thread(target=body, daemon=True, name=str(target)).start()


def _join_feedback(settings: Settings, stop: threading.Event) -> None:
    from streams.join_feedback import GROUP, build

    app = build(
        addresses(settings).bootstrap, settings.models, str(settings.data / "faust" / GROUP),
        wait_days=settings.join_wait_days, replication=settings.replication_factor, budget=_budget(settings),
        ids=InferenceIds(identity_secret(settings)),
    )
    run_faust(app, settings, GROUP)


def _conduct(settings: Settings, stop: threading.Event) -> None:
    from streams import transact
    from streams.clickhouse import connect
    from streams.conduct.conditions import TrainerBudget
    from streams.conduct.situation import Knowledge, wait_for_tables
    from streams.conduct.step import GROUP, TICK_S, TOPICS, ConductStep

    where = addresses(settings)
    client = connect(where.clickhouse)
    wait_for_tables(client, stop)
    trainer = TrainerBudget(
        settings.trainer_jobs_per_day, settings.trainer_hours_per_day, settings.trainer_money_per_day,
        settings.trainer_price_per_hour, settings.trainers,
    )  # fmt: skip
    step = ConductStep(
        where.bootstrap, settings.models, Knowledge(client, _store(settings)), _store(settings), trainer,
        _budget(settings),
    )  # fmt: skip
    _say_ready(settings, GROUP)
    transact.run(
        where.bootstrap, GROUP, TOPICS, step, stop, transactional_id="tuneloop-conduct", tick=step.tick, tick_s=TICK_S
    )


def run_faust(app: object, settings: Settings, name: str) -> None:
    """A Faust worker without its web server, which would listen on every interface."""
    import faust

    metrics.watch_group(addresses(settings).bootstrap, name)

    @app.on_after_configured.connect  # type: ignore[attr-defined]
    def _(*_: object, **__: object) -> None:
        log.info("%s configured", name)

    worker = faust.Worker(app, loglevel="INFO", override_logging=False, loop=asyncio.new_event_loop())  # type: ignore[arg-type]

    @app.task  # type: ignore[attr-defined, untyped-decorator]
    async def tell_ready() -> None:
        _say_ready(settings, name)

    worker.execute_from_commandline()


def _work(settings: Settings, stop: threading.Event) -> None:
    from streams import long_job
    from trainers.worker import GROUP, TOPIC, WorkJob

    bootstrap = addresses(settings).bootstrap
    child = long_job.WarmChild("trainers.work_child", settings.artifact_place)
    job = WorkJob(bootstrap, settings.models)
    child.wait_warm(stop)
    _say_ready(settings, GROUP)
    long_job.run(bootstrap, GROUP, TOPIC, job, child, stop, transactional_id="tuneloop-work-0",
                 budget=_budget(settings))  # fmt: skip


def _gate(settings: Settings, stop: threading.Event) -> None:
    from streams import long_job
    from trainers.gate.validate import GROUP, TOPIC, GateJob

    bootstrap = addresses(settings).bootstrap
    child = long_job.WarmChild("trainers.gate.judge", settings.artifact_place)
    child.wait_warm(stop)
    _say_ready(settings, GROUP)
    job = GateJob(bootstrap, settings.models)
    long_job.run(bootstrap, GROUP, TOPIC, job, child, stop, transactional_id="tuneloop-gate-0",
                 budget=_budget(settings))  # fmt: skip


def _erase(settings: Settings, stop: threading.Event) -> None:
    from deploy.local.ray import short_temp_dir
    from streams import long_job
    from streams.erase.job import GROUP, TOPIC, EraseJob

    where = addresses(settings)
    logs = [str(settings.data / "logs"), str(short_temp_dir(settings.data))]
    child = long_job.WarmChild(
        "streams.erase.child", (where.bootstrap, where.clickhouse, logs, *settings.artifact_place), at_once=False
    )
    _say_ready(settings, GROUP)
    job = EraseJob(where.bootstrap, key_id(identity_secret(settings)))
    long_job.run(where.bootstrap, GROUP, TOPIC, job, child, stop, transactional_id="tuneloop-erase-0",
                 budget=_budget(settings))  # fmt: skip


def _serve(settings: Settings, stop: threading.Event) -> None:
    from urllib.parse import urlsplit

    from deploy.local.ray import start_ray
    from serving import limits, proxy
    from serving.doors import DoorPolicy

    where = addresses(settings)
    doors = DoorPolicy(
        allowed_hosts=settings.allowed_hosts, cors_origins=settings.cors_origins,
        max_requests=settings.serve_replicas * limits.most_requests(settings.serve_slots),
    )  # fmt: skip
    os.environ.update(proxy.environment(doors))
    start_ray(settings.data)  # before anything imports ray
    from serving.app import ServeSettings, run_serve

    serve_settings = ServeSettings(
        bootstrap=where.bootstrap, artifacts=settings.artifact_place,
        identity_secret_file=str(settings.secret_file.absolute()), environment=credentials(settings),
        policies=settings.models, slots=settings.serve_slots,
    )
    run_serve(serve_settings, settings.http_host, urlsplit(where.http).port or 8000, settings.serve_replicas)
    _say_ready(settings, "serve")
    stop.wait()
    from ray import serve

    serve.shutdown()


_RUNNERS: dict[str, Callable[[Settings, threading.Event], None]] = {
    "prepare": _prepare, "join-feedback": _join_feedback, "monitor": _monitor, "conduct": _conduct,
    "work": _work, "gate": _gate, "register": _register, "erase": _erase, "serve": _serve,
}  # fmt: skip


def main() -> None:
    """Run the process that is named, with the settings of the environment and the settings file."""
    (name,) = sys.argv[1:]
    try:
        run(name, settings_module.load({}))
    except Exception as error:
        log.exception("%s ends", name)
        sys.exit(f"error: {without_secrets(str(error))}")


if __name__ == "__main__":
    main()
