"""A client that keeps asking, and may say how each answer was, while a test does things to the system.

It counts on its own: what it asked, which version answered when, what failed when.
"""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType

import httpx

from deploy.demo.stage import MODEL


@dataclass(frozen=True)
class Answer:
    """One answer; `at` is monotonic seconds when it was asked for."""

    at: float
    inference_id: str
    version: int
    text: str


@dataclass(frozen=True)
class Failure:
    at: float
    what: str
    why: str


@dataclass
class Steady(AbstractContextManager["Steady"]):
    """Ask `model` every `pause_s`; with `rating`, say it of every answer."""

    url: str
    texts: tuple[str, ...]
    model: str = MODEL
    pause_s: float = 0.2
    rating: float | None = None
    answers: list[Answer] = field(default_factory=list)
    rated: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        texts = itertools.cycle(self.texts)
        while not self._stop.is_set():
            # A client per question: a connection kept open would hide that new ones are refused.
            with httpx.Client(base_url=self.url, timeout=30, trust_env=False) as client:
                self._ask(client, next(texts))
            self._stop.wait(self.pause_s)

    def _ask(self, client: httpx.Client, text: str) -> None:
        at = time.monotonic()
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], "user": "steady"}
        done = self._post(client, "/v1/chat/completions", body, at)
        if done is None:
            return
        version = int(done["model"].partition("@")[2])
        self.answers.append(Answer(at, done["id"], version, done["choices"][0]["message"]["content"]))
        if self.rating is not None:
            at = time.monotonic()
            said = {"inference_id": done["id"], "metric_name": "rating", "value": self.rating}
            if self._post(client, "/v1/feedback", said, at) is not None:
                self.rated.append(done["id"])

    def _post(self, client: httpx.Client, path: str, body: dict[str, object], at: float) -> dict | None:
        try:
            reply = client.post(path, json=body)
        except httpx.HTTPError as error:
            self.failures.append(Failure(at, path, f"{type(error).__name__}: {error}"))
            return None
        if reply.status_code != 200:
            self.failures.append(Failure(at, path, f"{reply.status_code} {reply.text}"))
            return None
        return reply.json()

    def versions(self) -> list[int]:
        """Which versions answered, in the order they first did."""
        return list(dict.fromkeys(answer.version for answer in self.answers))

    def __enter__(self) -> Steady:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(60)
        if kind is None:
            assert not self._thread.is_alive(), "the steady client hangs"
            assert self.answers, f"the steady client got no answer: {self.failures[:3]}"
