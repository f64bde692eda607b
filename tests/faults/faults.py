"""The faults: what each does to a running machine, and how long the consumers took to move on.

Every fault returns the seconds from the fault (a kill) or from its end (a stop, a flood, a long job) until the
committed offset of every partition of every lane it met lies beyond where it was.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

from confluent_kafka import Consumer, KafkaException, TopicPartition

from schemas.topics import DATA_PARTITIONS
from streams import kafka
from tests.faults.erase_child import ONCE
from tests.faults.feed import TOPICS
from tests.faults.machine import GROUPS, Machine
from tests.faults.slots import PATIENCE_S, Slot, StuckError, until

Fault = Callable[[Machine, Random, str], float]
# How long past its session a stopped consumer sleeps.
OVERSLEPT_S = 1.5


def kill(machine: Machine, random: Random, lane: str) -> float:
    """kill -9 of one process at any moment."""
    machine.ready(lane)
    time.sleep(random.random())
    before, began = machine.now(lane), time.monotonic()
    random.choice(machine.running(lane)).kill()
    return machine.recovery(began, before)


def kill_at(failpoint: str) -> Fault:
    """kill -9 at a failpoint, of whichever process of the lane comes by first."""

    def fault(machine: Machine, random: Random, lane: str) -> float:
        ending = machine.first_end(lane, f"{failpoint}=kill@{random.randint(1, 3)}", -signal.SIGKILL)
        before = machine.now(lane)
        machine.hits[failpoint] += 1
        return machine.recovery(ending.at, before)

    return fault


def kill_twice(machine: Machine, random: Random, lane: str) -> float:
    """The process that is started again dies once more, at the first failpoint that it passes."""
    failpoint = FIRST[lane]
    slot = random.choice(machine.running(lane))
    machine.ready(lane)
    ended = len(slot.endings)
    slot.end(signal.SIGKILL)
    before = machine.now(lane)
    slot.start(armed=f"{failpoint}=kill@1")

    def over() -> bool:  # where it gets no partition in time the first kill was all
        return len(slot.endings) >= ended + 2 or machine.moved(lane, before[lane])

    until(over, PATIENCE_S, f"{lane} to die again or to move on")
    slot.arm("")
    if len(slot.endings) < ended + 2:
        return time.monotonic() - slot.endings[-1].at
    machine.hits[failpoint] += 1
    before = machine.now(lane)
    return machine.recovery(slot.endings[-1].at, before)


FIRST = {"copy": "transact.handled", "prepare": "artifact.renamed", "sink": "sink.written", "work": "job.answered"}


def stop(machine: Machine, random: Random, lane: str) -> float:
    """SIGSTOP past the session's time-out, then SIGCONT: a zombie, which must never commit."""
    machine.ready(lane)
    slot = random.choice(machine.running(lane))
    slot.send(signal.SIGSTOP)
    return _woken(machine, slot, lane)


def stop_at(*failpoints: str) -> Fault:
    """The same in the middle of things."""

    def fault(machine: Machine, random: Random, lane: str) -> float:
        failpoint = random.choice([name for name in failpoints if lane in LANES_OF[name.partition(".")[0]]])
        machine.ready(lane)
        for slot in machine.running(lane):
            slot.arm(f"{failpoint}=stop@1")
        asleep = until(
            lambda: next((one for one in machine.running(lane) if one.stopped()), None), PATIENCE_S, f"{failpoint} in {lane}"
        )
        for slot in machine.running(lane):
            if slot is not asleep:
                slot.arm("")
        return _woken(machine, asleep, lane)

    return fault


def _woken(machine: Machine, slot: Slot, lane: str) -> float:
    time.sleep(0.2)
    for other in machine.running(lane):
        if other is not slot:  # one that came by the same failpoint before it was disarmed
            other.send(signal.SIGCONT)
    time.sleep(machine.pace.session_ms / 1000 + OVERSLEPT_S)
    slot.arm("")
    before, began = machine.now(lane), time.monotonic()
    slot.send(signal.SIGCONT)
    return machine.recovery(began, before)


def kill_broker(machine: Machine, random: Random, lane: str) -> float:
    """kill -9 of the broker right after it was sent an EndTxn."""
    before = machine.now()
    happened = machine.proxy.at("EndTxn", machine.broker.kill)
    assert happened.wait(PATIENCE_S), "no transaction ended"
    return machine.recovery(time.monotonic(), before)


def stop_broker(machine: Machine, random: Random, lane: str) -> float:
    """SIGSTOP of the broker right after it was sent an EndTxn, and SIGCONT some time later."""
    happened = machine.proxy.at("EndTxn", lambda: machine.broker.send(signal.SIGSTOP))
    assert happened.wait(PATIENCE_S), "no transaction ended"
    time.sleep(random.uniform(0.5, 1.5) * machine.pace.session_ms / 1000)
    began = time.monotonic()
    machine.broker.send(signal.SIGCONT)
    return machine.recovery(began, machine.now())


def lose(api: str) -> Fault:
    """The broker's answer to one request never arrives, and its connection breaks."""

    def fault(machine: Machine, random: Random, lane: str) -> float:
        before = machine.now()
        assert machine.proxy.lose(api).wait(PATIENCE_S), f"no {api} was answered"
        return machine.recovery(time.monotonic(), before)

    return fault


def storm(machine: Machine, random: Random, lane: str) -> float:
    """Two more processes join and leave, politely or not, several times."""
    extras = [machine.extra(lane), machine.extra(lane)]
    for _ in range(3):
        for slot in extras:
            slot.start()
            time.sleep(random.random())
        time.sleep(random.random() * 2)
        for slot in extras:
            slot.end(random.choice([signal.SIGKILL, signal.SIGTERM]))
    before, began = machine.now(lane), time.monotonic()
    for slot in extras:
        machine.slots[lane].remove(slot)
    return machine.recovery(began, before)


def long_job(machine: Machine, random: Random, lane: str) -> float:
    """A job that takes twice the poll interval; counted from when it should have ended, having begun in its turn."""
    seconds = 2 * machine.pace.poll_ms / 1000
    machine.feed.job(seconds)
    machine.feed.flush()
    last = machine.last(lane)
    turn = {partition: offset - 1 for partition, offset in last.items()}
    until(lambda: machine.moved(lane, turn), PATIENCE_S, "the turn of a long job")
    return max(0.0, machine.recovery(time.monotonic() + seconds, {lane: last}))


SLOWING = "slowing down"
LIFTED = {"FAULTS_BUDGET": "0"}


def flood(machine: Machine, random: Random, lane: str) -> float:
    """Nothing but poison: the consumer slows down and says so, ends for nobody, and each becomes a dead letter."""
    machine.ready(lane)
    slots = machine.running(lane)
    ended = {slot.name: len(slot.endings) for slot in slots}
    said = {slot.name: slot.said(SLOWING) for slot in slots}
    machine.feed.flooded.add(lane)
    try:
        for _ in range(4_000):
            machine.feed.say(lane)
        slowed = lambda: any(slot.said(SLOWING) > said[slot.name] for slot in slots)  # noqa: E731
        until(slowed, PATIENCE_S, f"{lane} to slow down")
    finally:
        machine.feed.flooded.discard(lane)
    before, began = machine.now(lane), time.monotonic()
    recovery_s = machine.recovery(began, before)
    until(lambda: machine.lag(lane) < 1_000, PATIENCE_S, f"{lane} through its poison")
    if any(len(slot.endings) > ended[slot.name] for slot in slots):
        raise StuckError(f"{lane}: poison ended a consumer")
    return recovery_s


def kill_in_a_loop(machine: Machine, random: Random, lane: str) -> float:
    """Every process of the lane killed as soon as it has started, five times."""
    for _ in range(5):
        machine.ready(lane)
        time.sleep(random.random())
        for slot in machine.running(lane):
            slot.kill()
        time.sleep(0.2)
    before, began = machine.now(lane), time.monotonic()
    return machine.recovery(began, before)


def replay(machine: Machine, random: Random, lane: str) -> float:
    """The group's offsets go back to the beginning and the sink asks no store: every row is written again.

    It does not slow down for poison: floods of before come again. It has recovered when it moves on from there; the fault
    ends when it has caught up.
    """
    before = machine.now(lane)
    slots = machine.running(lane)
    for slot in slots:
        slot.end()
    until(lambda: _rewound(machine, lane), PATIENCE_S, f"{lane} rewound", every_s=0.3)
    began = time.monotonic()
    for slot in slots:
        slot.environment = LIFTED | {"FAULTS_REPLAY": "1"}  # in every life: asked half-way, the store knows the end
        slot.start()
    recovery_s = machine.recovery(began, {lane: dict.fromkeys(before[lane], 0)})
    until(lambda: machine.moved(lane, before[lane]), PATIENCE_S, f"{lane} to catch up")
    for slot in slots:
        slot.environment = {}
        slot.end()
        slot.start()
    return recovery_s


def _rewound(machine: Machine, lane: str) -> bool:
    somebody = Consumer({**kafka.client_settings(machine.bootstrap), "group.id": GROUPS[lane]})
    try:
        places = [TopicPartition(TOPICS[lane], number, 0) for number in range(DATA_PARTITIONS)]
        somebody.commit(offsets=places, asynchronous=False)
    except KafkaException:  # the group still has a member whose session has not run out
        return False
    finally:
        somebody.close()
    return True


def disk_full(machine: Machine, random: Random, lane: str) -> float:
    """No space is left for a shard."""
    ending = machine.first_end(lane, "artifact.written=diskfull@1", 1)
    return machine.recovery(ending.at, machine.now(lane))


def kill_clickhouse(machine: Machine, random: Random, lane: str) -> float:
    """kill -9 of ClickHouse."""
    before, began = machine.now(lane), time.monotonic()
    machine.clickhouse.kill()
    return machine.recovery(began, before)


# What somebody says before they ask to be forgotten, and goes on to say; and for how long.
SAID_BEFORE, SAID_AFTER, SPEAKING_S = 20, 20, 4.0
BEGUN, CHILD_LOST = ": records", "the working process ended with exit code -9"


@contextmanager
def _forgetting(machine: Machine, random: Random, prepared: bool) -> Iterator[None]:
    """Somebody speaks, asks to be forgotten (once part of it is `prepared`), and goes on speaking in the block."""
    person = f"person-{len(machine.erasures)}-{random.randrange(1_000_000)}"
    for _ in range(SAID_BEFORE):
        machine.feed.say_as(person)
    if prepared:
        machine.feed.flush()
        until(lambda: machine.has_prepared(person), PATIENCE_S, f"what {person} says prepared")
    else:
        time.sleep(random.random() * 3)  # part of it may be by then

    def speak() -> None:
        for _ in range(SAID_AFTER):
            machine.feed.say_as(person)
            time.sleep(SPEAKING_S / SAID_AFTER)

    speaking = threading.Thread(target=speak)
    machine.forget(person)
    speaking.start()
    try:
        yield
    finally:
        speaking.join()


def erase_while_preparing(machine: Machine, random: Random, lane: str) -> float:
    """Somebody is forgotten while what they say is prepared, by a process that dies over it."""
    failpoint = random.choice(["transact.handled", "transact.produced", "transact.offsets_sent", "artifact.renamed"])
    machine.ready(lane)
    with _forgetting(machine, random, prepared=False):
        return kill_at(failpoint)(machine, random, lane)


def kill_the_erasure_at(failpoint: str) -> Fault:
    """The child that erases dies there, and in half of all cases its parent with it.

    An erasure takes a minute by nature: it has recovered once it has begun again and `prepare` has moved on.
    """

    def fault(machine: Machine, random: Random, lane: str) -> float:
        machine.eraser.end(signal.SIGKILL)
        (machine.folder / ONCE).write_text(f"{failpoint}=kill@1")
        machine.eraser.start()
        lost = machine.erase_says(CHILD_LOST)
        with _forgetting(machine, random, prepared=True):
            until(lambda: machine.erase_says(CHILD_LOST) > lost, PATIENCE_S, failpoint)
            began, before, begun = time.monotonic(), machine.now(lane), machine.erase_says(BEGUN)
            if random.random() < 0.5:
                machine.eraser.kill()
            machine.hits[failpoint] += 1
            until(lambda: machine.erase_says(BEGUN) > begun, PATIENCE_S, f"an erasure after {failpoint}")
            return max(time.monotonic() - began, machine.recovery(began, before))

    return fault


LANES_OF = {
    "transact": ("copy", "prepare"), "artifact": ("prepare",), "sink": ("sink",), "land": ("sink",), "job": ("work",),
}  # fmt: skip
