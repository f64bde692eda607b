"""What one gateway replica says of itself to Prometheus, as /metrics on the endpoint's own port.

Replicas share that port and a scrape reaches one of them: every figure bears its replica's name, and nothing is
exported (as the process's own memory or processor time would be) that does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from schemas.topics import TOPICS
from serving.errors import ApiError
from streams.metrics import WINDOW_S, Rate

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class ReplicaMetrics:
    """The figures of one replica, named `replica`. Safe between threads."""

    def __init__(self, replica: str) -> None:
        self.registry = CollectorRegistry()
        self._replica, self._rate = replica, Rate()
        self._requests = self._counter("requests", "Requests received.", "endpoint")
        self._failures = self._counter("request_failures", "Requests refused or failed.", "endpoint", "status")
        self._feedback = self._counter("feedback", "Feedback that the broker has acknowledged.", "metric")
        self._refused_events = self._counter("events_refused", "Events that the broker did not take.", "topic")
        self._lost_events = self._counter("events_lost", "Events given up after the last attempt.", "topic")
        for topic in TOPICS:  # a counter that begins at 1 has not increased, as far as Prometheus can see
            if "serve" in topic.producers:
                self._refused_events.labels(replica, topic.name)
                self._lost_events.labels(replica, topic.name)
        self._seconds = Histogram(
            "tuneloop_request_seconds", "From a chat request to the end of its answer.", ["replica", "version"],
            buckets=_BUCKETS, registry=self.registry,
        )  # fmt: skip
        waits = "Events that the broker does not have yet."
        self._waiting = Gauge("tuneloop_unsent_records", waits, ["replica"], registry=self.registry)
        said = f"Requests received a second, over the last {WINDOW_S} s."
        gauge = Gauge("tuneloop_requests_per_second", said, ["replica"], registry=self.registry)
        gauge.labels(replica).set_function(self._rate.per_second)

    def _counter(self, name: str, said: str, *labels: str) -> Counter:
        return Counter(f"tuneloop_{name}", said, ["replica", *labels], registry=self.registry)

    @contextmanager
    def request(self, endpoint: str) -> Iterator[None]:
        """Count one request of `endpoint`, and its failure where the block raises one."""
        self._requests.labels(self._replica, endpoint).inc()
        self._rate.add(1)
        try:
            yield
        except Exception as error:
            self.failed(endpoint, error)
            raise

    def failed(self, endpoint: str, error: Exception) -> None:
        """Count a failure; one that is no `ApiError` leaves as status 500."""
        status = error.status if isinstance(error, ApiError) else 500
        self._failures.labels(self._replica, endpoint, str(status)).inc()

    def answered(self, version: str, seconds: float) -> None:
        """Count one answer of `version` (model@number)."""
        self._seconds.labels(self._replica, version).observe(seconds)

    def refused_event(self, topic: str) -> None:
        """Count an event that the broker did not take."""
        self._refused_events.labels(self._replica, topic).inc()

    def lost_event(self, topic: str) -> None:
        """Count an event that is not tried again."""
        self._lost_events.labels(self._replica, topic).inc()

    def watch_events(self, waiting: Callable[[], float]) -> None:
        """Ask `waiting` at every scrape how many events the broker does not have yet."""
        self._waiting.labels(self._replica).set_function(waiting)

    def feedback(self, metric: str) -> None:
        self._feedback.labels(self._replica, metric).inc()

    def exposed(self) -> bytes:
        """All of it, in Prometheus' text form."""
        return generate_latest(self.registry)
