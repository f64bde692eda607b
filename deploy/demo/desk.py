"""The desk: clients that ask over HTTP with the OpenAI package and say how the answers did.

The agents score every answer and give the right one; the background client only asks. Both count on their
own what they saw, to be compared with what ClickHouse counted.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
from openai import OpenAI, OpenAIError

from deploy.demo.questions import Question
from schemas.identity import content_hash

AGENTS = 8


@dataclass(frozen=True)
class Scored:
    """One scored answer as the client saw it; `version` is the one that answered."""

    inference_id: str
    version: int
    correct: bool
    old: bool


@dataclass
class Desk:
    """See the module. Counters are guarded by `_lock`."""

    url: str
    model: str
    scored: list[Scored] = field(default_factory=list)
    requests: int = 0
    failures: list[str] = field(default_factory=list)
    latest_version: int = -1

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._openai = OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=60)
        self._http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def ask(self, text: str, customer: str) -> tuple[str, int, str] | None:
        """(inference id, version, answer), or None where the request failed; every request counts."""
        try:
            done = self._openai.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": text}], safety_identifier=customer
            )
        except OpenAIError as error:
            with self._lock:
                self.requests += 1
                self.failures.append(f"{type(error).__name__}: {error}")
            return None
        version = int(done.model.partition("@")[2])
        with self._lock:
            self.requests += 1
            self.latest_version = max(self.latest_version, version)
        return done.id, version, done.choices[0].message.content or ""

    def serve(self, question: Question) -> Scored | None:
        """Ask, compare with the right answer, and give feedback: right or wrong, and what is right."""
        answered = self.ask(question.text, "customer-" + content_hash(question.text)[:16])
        if answered is None:
            return None
        identity, version, answer = answered
        correct = answer.strip() == question.intent
        self._say(identity, "correct", correct)
        self._say(identity, "demonstration", question.intent)
        scored = Scored(identity, version, correct, question.old)
        with self._lock:
            self.scored.append(scored)
        return scored

    def _say(self, inference_id: str, metric: str, value: bool | str) -> None:
        body = {"inference_id": inference_id, "metric_name": metric, "value": value}
        reply = self._http.post("/v1/feedback", json=body)
        if reply.status_code != 200:
            with self._lock:
                self.failures.append(f"feedback {reply.status_code}: {reply.text}")

    def serve_all(
        self, questions: Sequence[Question], on_each: Callable[[int], None], enough: Callable[[], bool] = lambda: False
    ) -> int:
        """Serve questions with AGENTS at once until they run out or `enough`; returns how many were asked."""
        asked = 0
        with ThreadPoolExecutor(AGENTS) as agents:
            for start in range(0, len(questions), AGENTS):
                if enough():
                    break
                chunk = questions[start : start + AGENTS]
                list(agents.map(self.serve, chunk))
                asked += len(chunk)
                on_each(asked)
        return asked


class Background:
    """A client that nobody scores: asks known questions at a steady pace, through every job and swap."""

    def __init__(self, desk: Desk, texts: Sequence[str], per_second: float, threads: int = 2) -> None:
        self._desk, self._pace_s = desk, threads / per_second
        self._texts, self._stop = itertools.cycle(texts), threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        self._lock = threading.Lock()
        self.asked = 0
        self._began = 0.0

    def start(self) -> None:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            with self._lock:
                text = next(self._texts)
                self.asked += 1
            self._desk.ask(text, "background")
            due += self._pace_s
            self._stop.wait(max(0.0, due - time.monotonic()))

    def stop(self) -> float:
        """Stop asking; returns the questions a second that it kept up."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        return self.asked / max(1e-9, time.monotonic() - self._began)
