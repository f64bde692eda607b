"""Following the registry: a replica's thread that keeps routes and loaded adapters as `models.registry` says.

It reads the topic from its beginning, committed records only, without a group: every replica sees all of it,
and none reports ready before it has seen the end. A new version is loaded beside the old and must reproduce
its candidate's logits; only then the route points to it. Where that fails the old version stays,
`AdapterLoaded` says why, and it is tried again after growing pauses until what serves is what is wanted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaError, TopicPartition

from schemas.events import AdapterLoaded, BaseRegistered, ModelStateChanged, Version
from schemas.policy import ModelPolicy
from serving.errors import AdapterError, EngineError
from serving.fingerprint import same_fingerprint, tolerance
from streams import kafka
from streams.artifacts import ArtifactError, ArtifactStore
from streams.registry import find
from streams.unreadable import readable

if TYPE_CHECKING:
    from serving.engine import Engine

log = logging.getLogger(__name__)
TOPIC = "models.registry"
# Between two tries to load the same version: twice as long each time.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0


class RouteError(RuntimeError):
    """A version cannot be served; the message says why."""


@dataclass(frozen=True)
class Route:
    """How to answer for one version: which engine, which loaded adapter (None = the base itself)."""

    model: str
    version: int
    base: str
    engine: Engine
    adapter: str | None
    digest: str = ""


@dataclass(frozen=True)
class Failure:
    """A version that could not be loaded, and when it is tried again (`time.monotonic`)."""

    version: int
    reason: str
    pause_s: float
    due_s: float


class Follower:
    """Routes of one replica. `say` publishes what happened; everything else is read."""

    def __init__(
        self,
        policies: dict[str, ModelPolicy],
        store: ArtifactStore,
        replica: str,
        say: Callable[[AdapterLoaded], None],
        make_engine: Callable[[Path], Engine],
    ) -> None:
        self._policies, self._store, self._replica, self._say = policies, store, replica, say
        self._make_engine = make_engine
        self.states: dict[str, ModelStateChanged] = {}
        self._bases: dict[str, BaseRegistered] = {}
        self._engines: dict[str, Engine] = {}
        self._routes: dict[tuple[str, str], Route] = {}
        self._champions: dict[str, int] = {}
        self._failed: dict[str, Failure] = {}
        self._loads = 0
        self._lock = threading.RLock()
        self._in_the_past = True
        self.caught_up = threading.Event()

    # -- reading the registry -------------------------------------------------------------------------

    def follow(self, bootstrap: str, stop: threading.Event) -> None:
        """Read the registry for ever. Sets `caught_up` once the end has been seen and its state is served."""
        reader = kafka.consumer(bootstrap, "unused-no-group", **{"enable.partition.eof": True, "fetch.wait.max.ms": 50})
        reader.assign([TopicPartition(TOPIC, 0, 0)])
        self._in_the_past = True
        try:
            while not stop.is_set():
                self._read_one(reader)
                self._try_again()
        finally:
            reader.close()

    def _read_one(self, reader: Consumer) -> None:
        message = reader.poll(0.2)
        if message is None:
            return
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF and self._in_the_past:
                self.at_end()
            return
        for _, event in readable([kafka.record_of(message)]):
            self._take(event)

    def at_end(self) -> None:
        """All of the past is read: from now on every word counts."""
        self._in_the_past = False
        for model in self._policies:
            self._serve_champion(model)
        self.caught_up.set()

    def _take(self, event: ModelStateChanged | BaseRegistered) -> None:
        if isinstance(event, BaseRegistered):
            self._bases[event.model] = event
            waiting = [name for name, policy in self._policies.items() if policy.base == event.model]
        else:
            self.states[event.model] = event
            waiting = [event.model] if event.model in self._policies else []
        if not self._in_the_past:  # there, only the last word of each model counts
            for model in waiting:
                self._serve_champion(model)

    def _serve_champion(self, model: str) -> None:
        state = self.states.get(model)
        wanted = state.champion if state else 0
        if self._champions.get(model) == wanted:
            self._failed.pop(model, None)
            return
        began = time.monotonic()
        try:
            route = self.route(model, wanted)
        except RouteError as error:
            before = self._failed.get(model)
            if before is None or (before.version, before.reason) != (wanted, str(error)):
                log.error("%s@%d not served: %s", model, wanted, error)
                self._report(model, wanted, "", str(error), began)
            same = before is not None and before.version == wanted
            pause_s = min(2 * before.pause_s, LONGEST_PAUSE_S) if before and same else FIRST_PAUSE_S
            self._failed[model] = Failure(wanted, str(error), pause_s, time.monotonic() + pause_s)
            return
        self._failed.pop(model, None)
        self._champions[model] = wanted
        self._report(model, wanted, route.digest, "", began)
        self._retire(model, state)

    def _try_again(self) -> None:
        """Load what could not be loaded, when its pause is over."""
        for model, failure in list(self._failed.items()):
            if time.monotonic() >= failure.due_s:
                self._serve_champion(model)

    def _report(self, model: str, version: int, digest: str, reason: str, began: float) -> None:
        self._say(
            AdapterLoaded(
                model=model, version=version, digest=digest, replica=self._replica, loaded=not reason,
                reason=reason, seconds=time.monotonic() - began,
            )
        )

    # -- routes ---------------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether every configured model has something that answers."""
        return self.caught_up.is_set() and all(model in self._champions for model in self._policies)

    def champions(self) -> dict[str, int]:
        """The version that serves each model now."""
        return dict(self._champions)

    def champion(self, model: str) -> Route:
        """The route that serves `model` now: what was loaded and probed, not what was announced."""
        if model not in self._champions:
            base = self._policies[model].base
            raise RouteError(f"nothing serves {model} yet: its base {base!r} is not registered or does not load")
        version = self._champions[model]
        return self.loaded(model, version) or self.route(model, version)

    def loaded(self, model: str, version: int) -> Route | None:
        """The route of one version, if it is there. Never waits: whoever loads something holds the lock meanwhile."""
        entry = find(self.states.get(model), version)
        if version and entry is None:
            return None
        return self._routes.get((model, entry.digest if entry else ""))

    def route(self, model: str, version: int) -> Route:
        """The route of one version, loading it where it is not. Raises `RouteError`."""
        entry = find(self.states.get(model), version)
        if version and entry is None:
            raise RouteError(f"there is no version {version} of {model}")
        key = (model, entry.digest if entry else "")
        with self._lock:
            if key not in self._routes:
                self._routes[key] = self._load(model, entry)
            return self._routes[key]

    def _load(self, model: str, entry: Version | None) -> Route:
        base = entry.base if entry else self._policies[model].base
        try:
            engine = self._engine(base, entry.base_digest if entry else "")
            if entry is None:
                return Route(model, 0, base, engine, None)
            folder = self._store.get_folder(entry.path, entry.digest)
            self._loads += 1
            name = f"{model}@{entry.version}/{entry.digest[:12]}/{self._loads}"
            engine.load(name, folder)
        except (ArtifactError, AdapterError, EngineError, RouteError) as error:
            raise RouteError(str(error)) from error
        except Exception as error:  # a stranger's files may raise anything; the follower must go on and say so
            log.exception("%s@%d does not load", model, entry.version if entry else 0)
            raise RouteError(f"loading failed: {type(error).__name__}: {error}") from error
        self._compare(engine, name, entry)
        return Route(model, entry.version, base, engine, name, entry.digest)

    def _compare(self, engine: Engine, name: str, entry: Version) -> None:
        """Unload what does not answer as its candidate did. Raises `RouteError`."""
        try:
            allowed = tolerance(entry.dtype, engine.dtype)
            if entry.fingerprint and not same_fingerprint(engine.fingerprint(name), entry.fingerprint, allowed):
                raise RouteError("the loaded adapter does not reproduce its candidate's logits")
        except Exception as error:
            engine.unload(name)
            reason = str(error) if isinstance(error, RouteError) else f"its logits cannot be had: {error}"
            raise RouteError(reason) from error

    def _engine(self, name: str, digest: str) -> Engine:
        base = self._bases.get(name)
        if base is None:
            raise RouteError(f"base {name!r} is not registered; add it with `tuneloop base add {name} PATH`")
        if digest and base.digest != digest:
            raise RouteError(f"the version was trained on another {name!r} than the registered one")
        if base.digest not in self._engines:
            self._engines[base.digest] = self._make_engine(self._store.get_folder(base.path, base.digest))
        return self._engines[base.digest]

    def _retire(self, model: str, state: ModelStateChanged | None) -> None:
        """Unload what is neither champion nor previous; it comes back when somebody asks for it."""
        if state is None:
            return
        kept = {entry.digest for entry in state.versions if entry.version in (state.champion, state.previous)} | {""}
        with self._lock:
            for key in [key for key in self._routes if key[0] == model and key[1] not in kept]:
                route = self._routes.pop(key)
                if route.adapter:
                    route.engine.unload(route.adapter)

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()
