"""One life played: the product's steps on records that go from one to the other in memory, time as the life's own.

Each day people ask and say what they think; what was said is joined, prepared, landed; the monitor looks; the conductor
ticks; jobs are trained and judged; the registry decides. All of that is the product's code, but for the learner.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import numpy as np

from schemas import codec
from schemas import events as e
from schemas.identity import InferenceIds
from schemas.policy import ModelPolicy
from schemas.topics import BY_NAME
from serving.errors import PromptError
from streams import kafka
from streams.artifacts import ArtifactError, get_shard_set
from streams.clickhouse import connect
from streams.conduct.situation import Knowledge
from streams.conduct.step import TOPICS as CONDUCTED
from streams.conduct.step import ConductStep
from streams.conduct.triggers import yet_to_come
from streams.join.rules import Lesson, to_write, training_record
from streams.join_feedback import as_out
from streams.kafka import Out, Record
from streams.monitor.land import ClickHouseStore
from streams.monitor.measure import Measurer, note_policies
from streams.planning import disagreement
from streams.prepare.read import Reading, read
from streams.prepare.step import Committed, PrepareStep
from streams.register import TOPICS as REGISTERED
from streams.register import RegisterStep
from streams.registry import find
from tests.ids import SECRET, SPLIT_KEY
from tests.life.learner import Weights, train
from tests.life.plan import DAY_MS, Asking, Life, Question
from tests.stores import store_at
from trainers.gate import asking, judge
from trainers.gate.validate import GateJob, attempts
from trainers.opened import JobError, job_data
from trainers.row_files import places, put_table
from trainers.worker import WorkJob

BEGAN_MS = 1_767_225_600_000  # 2026-01-01
HOUR_MS = 3_600_000
IDS = InferenceIds(SECRET)
# How often within a day the conductor looks after everything else has been dealt with.
TICKS = 2


class Answer:
    """What an engine's ticket is to whoever waits for it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def result(self) -> Answer:
        return self


class StandInEngine:
    """The generation engine's place: answers by the learner's weights, at once."""

    def __init__(self, folder: Path, **_: Any) -> None:
        self._loaded: dict[str | None, Weights] = {None: Weights()}

    def load(self, name: str, folder: Path) -> None:
        self._loaded[name] = Weights.load(folder)

    def fingerprint(self, name: str) -> list[float]:
        return [1.0]

    dtype = "float32"

    def check(self, request: Any) -> None:
        if not request.messages:
            raise PromptError("no messages")

    def submit(self, request: Any) -> Answer:
        return Answer(self._loaded[request.adapter].answer([request.messages[-1]["content"]])[0])

    def close(self) -> None:
        pass


class InProcess:
    """The rules of `prepare` without a process of their own."""

    def __init__(self, policies: dict[str, ModelPolicy]) -> None:
        self._policies = policies

    def read(self, records: Sequence[Record], until: float = 0.0) -> list[Reading]:
        return [read(records, self._policies, SPLIT_KEY)]


class Silent:
    """A producer that keeps what is said to it."""

    def __init__(self) -> None:
        self.said: list[Out] = []

    def produce(self, topic: str, value: bytes, key: bytes, partition: int, **more: Any) -> None:
        self.said.append(Out(topic, key, value, more.get("headers") or [], None if partition < 0 else partition))

    def poll(self, _: float) -> int:
        return 0

    def flush(self, _: float) -> int:
        return 0


@dataclass
class Event:
    """Something the figures are made of: what happened on which day, to which version or job."""

    day: int
    what: str
    about: dict[str, Any] = field(default_factory=dict)


class World:
    """See the module. `weights` are those of each adapter by digest, `events` what happened."""

    def __init__(self, life: Life, seed: int, clickhouse: str, folder: Path) -> None:
        self.life, self.seed, self.asking = life, seed, Asking(life, seed, BEGAN_MS)
        self.model = f"life-{life.name.replace('_', '-')}-{seed}"
        self.now, self.day = BEGAN_MS, 0
        self.policy = ModelPolicy(base="life-base", **life.policy)
        self._dice = random.Random(f"{seed}/world")
        self._folder, self.store = folder, store_at(folder / "store")
        self.weights: dict[str, Weights] = {"": Weights()}
        self.events: list[Event] = []
        self.waits: dict[str, str] = {}
        self.questions: list[Question] = []
        self._client = connect(clickhouse)
        for table in self._client.query("SELECT name FROM system.tables WHERE database = 'tuneloop' AND engine LIKE '%MergeTree'").result_rows:
            if table[0] != "migrations":  # another life's
                self._client.command(f"TRUNCATE TABLE tuneloop.{table[0]}")
        self._offsets: Counter[tuple[str, int]] = Counter()
        self._pending: dict[str, list[Record]] = defaultdict(list)
        self._landing: list[Record] = []
        self._later: dict[int, list[Out]] = defaultdict(list)
        self._answers: dict[str, e.InferenceServed] = {}
        self._marks: dict[str, dict[str, Any]] = {}
        self._verdicts: list[e.VerdictReached] = []
        self._away = self._fails = False
        self._producer = Silent()
        policies = {self.model: self.policy}
        self._land = ClickHouseStore(self._client, self._producer)  # type: ignore[arg-type]
        self._prepare = PrepareStep(policies, self.store, lambda: Committed([], []), SPLIT_KEY, workers=InProcess(policies))  # type: ignore[arg-type]
        self._register = RegisterStep("", policies, self.store)
        self._knowledge = Knowledge(self._client, self.store)
        self._conduct = ConductStep(
            "", policies, self._knowledge, self.store, clock=lambda: self.now, champion=self._champion_of
        )
        self._measurer = Measurer(self._client, policies, self._producer, clock=lambda: self.now, key=SPLIT_KEY)  # type: ignore[arg-type]
        note_policies(self._client, policies)
        self._register_base(folder)

    def _register_base(self, folder: Path) -> None:
        (folder / "base").mkdir(parents=True)
        (folder / "base" / "words").write_text("none")
        path, digest = self.store.put_folder("bases", folder / "base")
        self.base = e.BaseAddRequested(model="life-base", path=path, digest=digest, architecture="linear", parameters=1, context_tokens=512)
        self._say([kafka.out(self.base, source="tuneloop", time_ms=self.now)])

    # -- the broker's place ---------------------------------------------------------------------------

    def _say(self, outs: list[Out]) -> None:
        for out in outs:
            topic = BY_NAME.get(out.topic)
            if topic is None:  # a dead letter
                self.events.append(Event(self.day, "dead letter", {"topic": out.topic}))
                continue
            place = out.topic, out.partition or 0
            self._offsets[place] += 1
            record = Record(out.topic, out.partition or 0, self._offsets[place], self.now, out.key, out.value, out.headers)
            self._landing.append(record)
            for consumer, topics in (("prepare", ["training.raw"]), ("conduct", CONDUCTED), ("register", REGISTERED),
                                     ("work", ["training.jobs"]), ("gate", ["models.candidates"])):  # fmt: skip
                if out.topic in topics:
                    self._pending[consumer].append(record)

    def _take(self, consumer: str) -> list[Record]:
        return self._pending.pop(consumer, [])

    def settle(self) -> None:
        """Until nobody has anything left to do."""
        while any(self._pending.values()) or self._landing:
            if records := self._take("prepare"):
                self._say(self._prepare.handle(records))
            if records := self._take("register"):
                self._say(self._register.handle(records))
                self._register.sweep()
            if records := self._take("conduct"):
                self._say(self._conduct.handle(records))
            for record in self._take("work"):
                self._say(self._work(kafka.decode(record)))
            for record in self._take("gate"):
                self._say(self._judge(kafka.decode(record)))
            if self._landing:
                landed, self._landing = self._landing, []
                self._land.write([self._land.read(landed)])
                for record in landed:
                    self._note(record)

    # -- what stands in for the trainer ---------------------------------------------------------------

    def _work(self, said: tuple[codec.Envelope, Any]) -> list[Out]:
        envelope, job = said
        worker = WorkJob.__new__(WorkJob)
        worker._policies, worker._done, worker._current = {}, set(), (envelope, job)
        self.now += 20 * 60_000
        if self._fails or self._away:
            return worker.finished(RuntimeError("the store is away" if self._away else "the disk is full"), 1.0)
        try:
            data = job_data(job, self.policy, self.store, get_shard_set(self.store, job.new_data), get_shard_set(self.store, job.replay_data))
        except (JobError, ArtifactError) as error:
            return worker.finished(error, 1.0)
        rng = np.random.default_rng(zlib.crc32(f"{self.model}/{job.job_id}".encode()))
        texts, answers = [row.messages[-1]["content"] for row in data.rows], [row.completion for row in data.rows]
        bad = self._dice.random() < self.life.bad_jobs or self._happens("bad_job")
        if bad:
            answers = [self._dice.choice(answers) if self._dice.random() < 0.5 else one for one in answers]
        trained = train(self.weights[job.parent_digest], texts, answers, rng)
        folder = self._folder / "trained" / job.job_id
        trained.save(folder)
        path, digest = self.store.put_folder("adapters", folder)
        self.weights[digest] = trained
        self.events.append(Event(self.day, "trained", {"job": job.job_id, "digest": digest, "bad": bad, "rows": len(data.rows)}))
        result = {
            "digest": digest, "path": path, "examples": len(data.rows), "steps": 1, "tokens": 1, "loss": 0.1, "fingerprint": [1.0],
            "dtype": "float32", "probe": "", "newest_row_ms": data.newest_row_ms, "warnings": list(data.warnings),
            **msgspec.to_builtins({
                "seen": put_table(self.store, "seen", places(data.rows)), "new_data": job.new_data, "replay_data": job.replay_data,
            }),
        }  # fmt: skip
        return worker.finished(result, 60.0)

    # -- the gate -------------------------------------------------------------------------------------

    def _judge(self, said: tuple[codec.Envelope, Any]) -> list[Out]:
        envelope, candidate = said
        gate = GateJob("", {self.model: self.policy})
        gate._current = envelope, candidate
        state = self._register._models.get(self.model)
        self.now += 5 * 60_000
        if isinstance(candidate, e.ReviewRequested):
            if state is None or (state.champion, state.epoch) != (candidate.version, candidate.epoch):
                return []
            request: Any = {"review": candidate, "policy": self.policy, "state": state}
        else:
            last = disagreement(one.checks for one in self._verdicts)
            request = {
                "candidate": candidate, "policy": self.policy, "state": state, "last": [last.share, last.design_effect],
                "attempt": attempts(self._verdicts, state.champion if state else 0, candidate.changed_at) + 1,
            }  # fmt: skip
        try:
            result: Any = judge.judge(msgspec.to_builtins(request), lambda message: None, self.store)
        except Exception as error:  # noqa: BLE001 - as the child's parent tells it
            result = RuntimeError(f"{type(error).__name__}: {error}")
        return gate.finished(result, 30.0)

    # -- a day ----------------------------------------------------------------------------------------

    def _champion_of(self, model: str) -> int:
        state = self._register._models.get(model)
        return state.champion if state else 0

    @property
    def champion(self) -> str:
        """The digest of the adapter that serves; "" = the base."""
        state = self._register._models.get(self.model)
        entry = find(state, state.champion) if state else None
        return entry.digest if entry else ""

    @property
    def under_way(self) -> bool:
        """Whether a job was asked for that has not been decided on."""
        asked = {event.about["job"] for event in self.events if event.what == "job"}
        return bool(asked - {event.about["job"] for event in self.events if event.what in ("decision", "ended")})

    def digest_of(self, version: int) -> str:
        entry = find(self._register._models.get(self.model), version)
        return entry.digest if entry else ""

    def changes(self) -> list[int]:
        """The days on which something new was asked for, or the right answer to something became another."""
        days = {one.from_day for one in self.life.intents if one.from_day} | {one.day for one in self.life.changes}
        return sorted(days)

    def told(self) -> dict[str, str]:
        """What the loop waits for, as `tuneloop status` tells it: for a job's conditions, or for what would ask for one."""
        if self._conduct._ledger.open(self.model):
            return dict(self.waits)
        return yet_to_come(self._knowledge.facts(self.model, self.policy), self.policy)

    def live(self) -> None:
        """The next day."""
        self.now = BEGAN_MS + self.day * DAY_MS
        self._begin()
        self.questions = self.asking.day(self.day)
        self._ask(self.questions)
        self.now = BEGAN_MS + self.day * DAY_MS + 14 * HOUR_MS
        self._say(self._later.pop(self.day, []))
        self._join()
        self.settle()
        self._look()
        for tick in range(TICKS):
            self.now = max(self.now, BEGAN_MS + self.day * DAY_MS + (15 + 2 * tick) * HOUR_MS)
            self._say(self._conduct.tick())
            self.settle()
        self.day += 1

    def _look(self) -> None:
        if not self.champion or self._away:
            return
        self._measurer.look_for_drift(self.model, self.policy)
        if self.day % 7 == 0 or self._producer.said:
            self._measurer.measure(self.model, self.policy)
        said, self._producer.said = self._producer.said, []
        self._say(said)
        self.settle()

    def _begin(self) -> None:
        self._away, self._fails = self._happens("store_away"), self._happens("fail_jobs")
        for one in self.life.happenings:
            if one.day == self.day and one.what in ("hold", "request"):
                event: Any = (
                    e.HoldRequested(model=self.model, hold=True, reason="by plan") if one.what == "hold"
                    else e.TrainingRequested(model=self.model, reason="by plan")
                )  # fmt: skip
                self._say([kafka.out(event, source="tuneloop", time_ms=self.now)])
            if one.what == "hold" and one.day + one.days == self.day:
                self._say([kafka.out(e.HoldRequested(model=self.model, hold=False), source="tuneloop", time_ms=self.now)])

    def _happens(self, what: str) -> bool:
        return any(one.what == what and one.day <= self.day < one.day + one.days for one in self.life.happenings)

    def _ask(self, questions: list[Question]) -> None:
        version, digest = self._champion_of(self.model), self.champion
        answers = self.weights[digest].answer([one.text for one in questions])
        for number, (one, answer) in enumerate(zip(questions, answers, strict=True)):
            uuid = f"{one.at_ms:012x}7{number % 4096:03x}8{self._dice.getrandbits(60):015x}"
            context = self.life.context.format(name=one.subject, date=one.at_ms // DAY_MS)
            system = [e.Message(role="system", content=context)] if context else []
            served = e.InferenceServed(
                model=self.model, inference_id=IDS.sign(uuid), version=version, requested=self.model, base="life-base", digest=digest,
                subject_id=one.subject, conversation_id=f"talk-{uuid[:16]}", messages=[*system, e.Message(role="user", content=one.text)],
                answer=answer, finish_reason="stop", input_tokens=8, output_tokens=3, latency_ms=20.0, first_token_ms=5.0,
            )  # fmt: skip
            self._say([kafka.out(served, source="serve", time_ms=one.at_ms)])
            self._opine(served, one)

    def _opine(self, served: e.InferenceServed, one: Question) -> None:
        right = served.answer == one.right
        self._answers[served.inference_id] = served
        for opinion in self.life.opinions:
            if opinion.of == ("wrong" if right else "right") or self._dice.random() >= opinion.share:
                continue
            angry = self.life.one_person_wrong and one.subject == "the-one"
            if angry and opinion.metric != "correct":
                continue
            value: Any = (right and not angry) if opinion.metric == "correct" else one.right
            said = e.FeedbackGiven(inference_id=served.inference_id, metric_name=opinion.metric, value=value, tags={"sampled": opinion.sampled} if opinion.sampled else {})
            late_ms = int(opinion.late_days * DAY_MS) + self._dice.randrange(HOUR_MS)
            out = kafka.out(said, source="serve", time_ms=one.at_ms + late_ms)
            self._later[self.day + int(opinion.late_days)].append(out)

    def _join(self) -> None:
        """What the join makes of the day's feedback, by its rules."""
        lessons: dict[str, list[Lesson]] = defaultdict(list)
        for record in [one for one in self._landing if one.topic == "usage.feedback"]:
            envelope, said = kafka.decode(record)
            served = self._answers[said.inference_id]
            made = training_record(served, said, self.policy.metrics, self.policy.thresholds)
            if made is not None:
                lessons[said.inference_id].append(Lesson(made, envelope, said))
        for inference, some in lessons.items():
            written, self._marks[inference] = to_write(self._marks.get(inference, {}), some)
            self._say([as_out(lesson.record, lesson.cause, BY_NAME["training.raw"].partitions) for lesson in written])

    # -- what happened --------------------------------------------------------------------------------

    def _note(self, record: Record) -> None:
        if record.value is None:
            return
        _, event = kafka.decode(record)
        if isinstance(event, e.VerdictReached):
            self._verdicts.append(event)
        elif isinstance(event, e.JobDeferred):
            self.waits = event.waits_for
        elif isinstance(event, e.JobRequested):
            self.waits = {}
            self.events.append(Event(self.day, "job", {"job": event.job_id, "reason": event.reason, "new": event.new_examples}))
        elif isinstance(event, e.DecisionMade) and event.decision != "base-added":
            about = {"decision": event.decision, "job": event.job_id, "version": event.version, "reason": event.reason, "digest": event.digest}
            self.events.append(Event(self.day, "decision", about))
        elif isinstance(event, e.JobEnded) and event.outcome != "succeeded":
            self.events.append(Event(self.day, "ended", {"job": event.job_id, "outcome": event.outcome, "reason": event.reason}))
        elif isinstance(event, e.DriftDetected):
            self.events.append(Event(self.day, "drift", {"version": event.version, "from": event.baseline, "to": event.current}))
        elif isinstance(event, e.TriggerOpened | e.TriggerClosed):
            kind = "opened" if isinstance(event, e.TriggerOpened) else "closed"
            self.events.append(Event(self.day, kind, {"trigger": event.trigger_id, "as": getattr(event, "kind", getattr(event, "because", ""))}))


@contextmanager
def playing(life: Life, seed: int, clickhouse: str, folder: Path) -> Iterator[World]:
    """A world in which time is the life's own and the learner answers."""
    holder: dict[str, World] = {}
    clock = lambda: holder["world"].now if holder else BEGAN_MS  # noqa: E731
    with mock.patch.object(codec, "now_ms", clock), mock.patch.object(asking, "Engine", StandInEngine):
        holder["world"] = World(life, seed, clickhouse, folder)
        yield holder["world"]
