"""Measuring: each version's live quality, rating, latency and volume, and the drift alarm.

Reads ClickHouse (`tuneloop.scored_answers` and the landing tables), writes `PerformanceMeasured` and
`DriftDetected`. Both count people, and only answers that were asked for by an alias: who asks for `support@2` tries a
version, which says nothing of live traffic. Nothing is kept between looks that ClickHouse does not hold: the
detector's state is computed again from the version's scored answers in the order (time, partition, offset), so a
restart or a replay raises the same alarm with the same id.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from clickhouse_connect.driver.client import Client
from confluent_kafka import Producer

from schemas.codec import now_ms
from schemas.events import DriftDetected, PerformanceMeasured
from schemas.identity import drift_id, subject_key
from schemas.policy import ModelPolicy
from schemas.topics import DAY_MS
from streams import kafka, metrics
from streams.clickhouse import rows
from streams.monitor.detector import Alarm, Detector, DetectorSettings
from streams.monitor.intervals import wilson
from streams.monitor.known import quality_of

log = logging.getLogger(__name__)
SOURCE = "monitor"
LOOK_EVERY_S = 0.5
PERFORMANCE_EVERY_S = 2.0
LONGEST_PAUSE_S = 60.0
# Without news a look would find the same, but for what has left the last day meanwhile.
LOOK_ANYWAY_S = 60.0
_LOOKED_AT = (
    "inference_served", "feedback_given", "model_state_changed", "trigger_closed", "decision_made", "drift_detected",
    "model_policy",
)  # fmt: skip
# What is recent: of so many people who answered last, so many answers each.
RECENT_PEOPLE, RECENT_ANSWERS = 200, 20


class Measurer:
    """Looks at ClickHouse and says what it sees; one thread of the monitor process."""

    def __init__(
        self, client: Client, policies: Mapping[str, ModelPolicy], producer: Producer,
        clock: Callable[[], int] = now_ms, key: bytes = b"",
    ) -> None:  # fmt: skip
        """`clock` gives Unix ms. `key` (`schemas.identity.split_key`) tells the subjects that many people share."""
        self._clock, self._key = clock, key
        self._client, self._policies, self._producer = client, policies, producer
        self._said: dict[tuple[str, int], PerformanceMeasured] = {}
        self._judged: dict[tuple[str, int, int], int] = {}

    def run(self, stop: threading.Event) -> None:
        """Until `stop`. What fails is tried again after growing pauses: landing goes on meanwhile."""
        last_performance, failures, known = -LOOK_ANYWAY_S, 0, None
        while not stop.is_set():
            began = time.monotonic()
            due = began - last_performance >= PERFORMANCE_EVERY_S
            try:
                news = self._news()
                if news == known and began - last_performance < LOOK_ANYWAY_S:
                    stop.wait(LOOK_EVERY_S)
                    continue
                for model, policy in self._policies.items():
                    self.look_for_drift(model, policy)
                    if due:
                        self.measure(model, policy)
            except Exception:
                failures += 1
                metrics.MEASURING_FAILED.inc()
                log.exception("measuring failed %d times in a row; trying again", failures)
                stop.wait(min(LONGEST_PAUSE_S, LOOK_EVERY_S * 2**failures))
                continue
            failures = 0
            # Only where all was looked at is what was known looked at.
            known = news if due else None
            last_performance = began if due else last_performance
            # Looking costs more as answers pile up: never spend more than a fifth of a core on it.
            stop.wait(max(LOOK_EVERY_S, 4 * (time.monotonic() - began)))

    def _news(self) -> dict[str, int]:
        """How many rows there are of whatever a look rests on: the same numbers, the same look."""
        counts = ", ".join(f"(SELECT count() FROM tuneloop.{name}) AS {name}" for name in _LOOKED_AT)
        return rows(self._client, f"SELECT {counts}")[0]

    def champion(self, model: str) -> int:
        """The version that serves by the registry's latest landed state; 0 = the base."""
        found = rows(
            self._client,
            "SELECT champion FROM tuneloop.model_state_changed FINAL WHERE model = {model:String} "
            "ORDER BY epoch DESC, _offset DESC LIMIT 1",
            model=model,
        )
        return found[0]["champion"] if found else 0

    def look_for_drift(self, model: str, policy: ModelPolicy) -> DriftDetected | None:
        """Raise the alarm for the serving version, once until it is armed again; none while its quality is unknown.

        The base (version 0) has no baseline to fall from.
        """
        version = self.champion(model)
        if version == 0:
            return None
        armed_ms = self._armed_ms(model, version)
        if self._already_alarmed(model, version, armed_ms):
            return None
        answers = self._by_people(model, self._outcomes(model, version))
        if self._judged.get((model, version, armed_ms)) == len(answers):
            return None
        self._judged[model, version, armed_ms] = len(answers)
        alarm = alarm_of(answers, policy, armed_ms)
        if alarm is None or not quality_of(self._client, model).known:
            return None
        event = drift_event(model, version, policy, alarm, answers, armed_ms)
        self._publish(event, correlation_id=event.drift_id, event_id=event.drift_id)
        self._judged[model, version, armed_ms] = -1  # the next look may come before the alarm has landed
        log.warning("drift: %s@%d from %.3f to %.3f", model, version, event.baseline, event.current)
        return event

    def _armed_ms(self, model: str, version: int) -> int:
        """Since when an alarm may be raised again (Unix ms): its last one was closed, or it serves again; 0 = ever."""
        found = rows(
            self._client,
            "SELECT max(ts) AS since, toUnixTimestamp64Milli(since) AS ms, count() AS n FROM ("
            "  SELECT ts FROM tuneloop.trigger_closed WHERE trigger_id IN ("
            "    SELECT trigger_id FROM tuneloop.trigger_opened "
            "    WHERE model = {model:String} AND kind = 'drift' AND version = {version:Int64}) "
            "  UNION ALL SELECT ts FROM tuneloop.decision_made WHERE model = {model:String} "
            "    AND decision = 'rolled-back' AND version = {version:Int64})",
            model=model, version=version,
        )
        return int(found[0]["ms"]) if found[0]["n"] else 0

    def _by_people(self, model: str, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The answers, those of a subject under which many people speak each by its conversation."""
        names = self._shared_names(model)
        shared = {one for one in {row["subject_id"] for row in answers} if self._is_shared(names, model, one)}
        if not shared:
            return answers
        return [
            {**row, "subject_id": row["conversation_id"]} if row["subject_id"] in shared else row for row in answers
        ]  # fmt: skip

    def _shared_names(self, model: str) -> set[str]:
        """What stands for the subjects that are shared (`SubjectShared`)."""
        query = "SELECT subject_key FROM tuneloop.subject_shared WHERE model = {model:String}"
        return {row["subject_key"] for row in rows(self._client, query, model=model)} if self._key else set()

    def _is_shared(self, names: set[str], model: str, subject: str) -> bool:
        return bool(names) and subject_key(self._key, model, subject) in names

    def _outcomes(self, model: str, version: int) -> list[dict[str, Any]]:
        return rows(
            self._client,
            "SELECT correct, subject_id, conversation_id, toUnixTimestamp64Milli(answered_at) AS answered_ms, "
            "  _partition, _offset FROM tuneloop.scored_answers "
            "WHERE model = {model:String} AND version = {version:Int64} AND by_alias "
            "ORDER BY scored_at, _partition, _offset",
            model=model, version=version,
        )

    def _already_alarmed(self, model: str, version: int, armed_ms: int) -> bool:
        if self._judged.get((model, version, armed_ms)) == -1:
            return True
        found = rows(
            self._client,
            "SELECT count() AS n FROM tuneloop.drift_detected WHERE model = {model:String} "
            "AND version = {version:Int64} AND toUnixTimestamp64Milli(ts) > {armed:Int64}",
            model=model, version=version, armed=armed_ms,
        )
        if found[0]["n"]:
            self._judged[model, version, armed_ms] = -1
        return bool(found[0]["n"])

    def measure(self, model: str, policy: ModelPolicy) -> list[PerformanceMeasured]:
        """Publish what changed since the last look, for every version that answered in the last day."""
        events = []
        for row in self._performance(model):
            event = performance_event(model, policy, row)
            if self._said.get((model, event.version)) != event:
                self._said[model, event.version] = event
                self._publish(event, subject=f"{model}@{event.version}")
                events.append(event)
        return events

    def _performance(self, model: str) -> list[dict[str, Any]]:
        usage = rows(
            self._client,
            "SELECT i.version AS version, count() AS requests, countIf(f.scores > 0) / requests AS feedback_share, "
            "  avgOrNull(f.rating) AS rating, "
            "  quantile(0.5)(i.latency_ms) AS p50, quantile(0.99)(i.latency_ms) AS p99 "
            "FROM (SELECT * FROM tuneloop.inference_served FINAL WHERE model = {model:String} "
            "      AND ts > fromUnixTimestamp64Milli({since:Int64}, 'UTC')) AS i "
            "LEFT JOIN (SELECT inference_id, count() AS scores, "
            "           avgOrNullIf(toFloat64OrNull(value), metric_name = 'rating' AND kind = 'number') AS rating "
            "           FROM tuneloop.feedback_in_force GROUP BY inference_id) AS f "
            "  ON f.inference_id = i.inference_id "
            "GROUP BY version ORDER BY version",
            model=model, since=self._clock() - DAY_MS,
        )
        quality = {row["version"]: row for row in self._quality(model)}
        return [{**_UNSCORED, **row, **quality.get(row["version"], {})} for row in usage]

    def _quality(self, model: str) -> list[dict[str, Any]]:
        """By version the last day's people, each with their share of right answers: `good` is the sum of these."""
        names, since = self._shared_names(model), self._clock() - DAY_MS
        often = rows(
            self._client,
            "SELECT DISTINCT subject_id FROM tuneloop.scored_answers WHERE model = {model:String} "
            "AND answered_at > fromUnixTimestamp64Milli({since:Int64}, 'UTC')",
            model=model, since=since,
        ) if names else []  # fmt: skip
        shared = [row["subject_id"] for row in often if self._is_shared(names, model, row["subject_id"])]
        return rows(
            self._client,
            "SELECT version, sum(n) AS quality_n, count() AS quality_people, sum(share) AS good, "
            "  arraySlice(arrayReverseSort(x -> x.1, groupArray((last, latest))), 1, {people:Int64}) AS lately, "
            "  length(lately) AS recent_people, arraySum(arrayMap(x -> length(x.2), lately)) AS recent_n, "
            "  arraySum(arrayMap(x -> arrayAvg(x.2), lately)) AS recent_good "
            "FROM (SELECT version, count() AS n, "
            "        if(has({shared:Array(String)}, subject_id), conversation_id, subject_id) AS person, "
            "        avg(correct) AS share, max(answered_at) AS last, "
            "        arrayMap(x -> toInt64(x.2), arraySlice(arrayReverseSort(x -> x.1, "
            "          groupArray((answered_at, correct))), 1, {answers:Int64})) AS latest "
            "      FROM tuneloop.scored_answers WHERE model = {model:String} AND by_alias "
            "        AND answered_at > fromUnixTimestamp64Milli({since:Int64}, 'UTC') GROUP BY version, person) "
            "GROUP BY version",
            model=model, shared=shared, since=since, people=RECENT_PEOPLE, answers=RECENT_ANSWERS,
        )

    def _publish(self, event: Any, **attributes: Any) -> None:
        out = kafka.out(event, source=SOURCE, time_ms=self._clock(), **attributes)
        kafka.produce(self._producer, out)
        if self._producer.flush(10):
            raise TimeoutError("the broker did not acknowledge a measurement within 10 s")
        metrics.produced([out])


_UNSCORED = {"quality_n": 0, "quality_people": 0, "good": 0.0, "recent_n": 0, "recent_people": 0, "recent_good": 0.0}


def note_policies(client: Client, policies: Mapping[str, ModelPolicy]) -> None:
    """Tell ClickHouse's views which metric is a model's quality."""
    now = datetime.now(UTC)
    data = [[name, policy.base, policy.quality_metric, now] for name, policy in policies.items()]
    client.insert("tuneloop.model_policy", data, ["model", "base", "quality_metric", "updated_at"])


def detector_settings(policy: ModelPolicy) -> DetectorSettings:
    return DetectorSettings(
        baseline_n=policy.baseline_answers, delta=policy.tolerated_loss,
        false_alarm_days=policy.false_alarm_days, baseline_confidence=policy.confidence,
    )


def alarm_of(answers: Sequence[Mapping[str, Any]], policy: ModelPolicy, armed_ms: int = 0) -> Alarm | None:
    """The alarm that these scored answers raise, those of before `armed_ms` (Unix ms) by their baseline alone."""
    detector = Detector(detector_settings(policy))
    for row in answers:
        alarm = detector.update(
            bool(row["correct"]), row["subject_id"], row["answered_ms"], row["answered_ms"] > armed_ms
        )
        if alarm is not None:
            return alarm
    return None


def drift_event(
    model: str, version: int, policy: ModelPolicy, alarm: Alarm, answers: Sequence[Mapping[str, Any]], armed_ms: int = 0
) -> DriftDetected:
    """The alarm as an event; its id rests on the version's first scored answer since the alarm was armed."""
    first = next((row for row in answers if row["answered_ms"] > armed_ms), answers[0])
    partition, offset = first["_partition"], first["_offset"]
    return DriftDetected(
        model=model, drift_id=drift_id(model, version, policy.quality_metric, partition, offset), version=version,
        metric=policy.quality_metric, baseline=alarm.baseline, threshold=alarm.threshold, current=alarm.quality,
        evidence=alarm.evidence, average_run_length=alarm.average_run_length, answers=alarm.index + 1,
        people=alarm.people, changed_at=answers[alarm.changed_at]["answered_ms"],
        first_partition=partition, first_offset=offset,
    )


def performance_event(model: str, policy: ModelPolicy, row: dict[str, Any]) -> PerformanceMeasured:
    """One row of the performance query as an event, with 95% intervals.

    Wilson's over people: what one person's answers average to varies no more than one answer of each would.
    """
    quality, low, high = _share(row["good"], row["quality_people"])
    recent, recent_low, recent_high = _share(row["recent_good"], row["recent_people"])
    return PerformanceMeasured(
        model=model, version=row["version"], metric=policy.quality_metric, requests=row["requests"],
        feedback_share=row["feedback_share"], quality_n=row["quality_n"], quality_people=row["quality_people"],
        quality=quality, quality_low=low, quality_high=high,
        recent_n=row["recent_n"], recent_people=row["recent_people"],
        recent_quality=recent, recent_low=recent_low, recent_high=recent_high, rating=row["rating"],
        latency_ms_p50=row["p50"], latency_ms_p99=row["p99"],
    )


def _share(good: float, people: int) -> tuple[float | None, float | None, float | None]:
    """Quality with its bounds; nothing of nobody."""
    if not people:
        return None, None, None
    good = min(good, people)  # a sum of shares may be off by a rounding
    return (good / people, *wilson(good, people))
