"""The fault machine under rules that Hypothesis draws: whatever order things happen in, the oracle holds at the end.

One machine serves every example (its copy lane, quick sessions), so each example also starts on what the one before
left. `FAULTS_SEED` draws other examples.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaException
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from deploy.local.errors import LocalPartError
from deploy.local.kafka import fetch_jars
from streams import failpoints
from tests.faults.machine import QUICK, Machine

SEED = int(os.environ.get("FAULTS_SEED", "20261121"))
FAILPOINTS = [name for name in failpoints.NAMES if name.startswith("transact.")]
SLOT = st.integers(0, 1)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    try:
        fetch_jars()
    except LocalPartError as error:
        pytest.skip(str(error))
    with Machine(tmp_path_factory.mktemp("faults"), SEED, QUICK, lanes=("copy",)) as machine:
        yield machine


class Rules(RuleBasedStateMachine):
    """What may happen to the copy lane. `machine` is set by the test."""

    machine: Machine
    seen: list[str]

    def _slot(self, number: int):  # type: ignore[no-untyped-def]
        return self.machine.slots["copy"][number]

    @rule(count=st.integers(1, 300))
    def produce(self, count: int) -> None:
        for _ in range(count):
            self.machine.feed.say("copy")
        self.seen.append(f"produce {count}")

    @rule(count=st.integers(1, 20))
    def poison(self, count: int) -> None:
        for _ in range(count):
            self.machine.feed.say("copy", poison=True)
        self.seen.append(f"poison {count}")

    @rule()
    def abort(self) -> None:
        for _ in range(20):  # while a transaction of its is open nobody gets past it
            try:
                self.machine.aborter.abort("copy", 5)
                break
            except KafkaException:
                time.sleep(0.2)
        self.seen.append("abort")

    @rule(number=SLOT, failpoint=st.sampled_from(FAILPOINTS), at=st.integers(1, 2))
    def kill_at(self, number: int, failpoint: str, at: int) -> None:
        self._slot(number).arm(f"{failpoint}=kill@{at}")
        self.seen.append(f"kill {number} at {failpoint}@{at}")

    @rule(number=SLOT)
    def restart(self, number: int) -> None:
        self._slot(number).kill()
        self.seen.append(f"restart {number}")

    @rule(number=SLOT, seconds=st.sampled_from([0.2, 2.5]))
    def stop(self, number: int, seconds: float) -> None:
        self._slot(number).send(signal.SIGSTOP)
        time.sleep(seconds)
        self._slot(number).send(signal.SIGCONT)
        self.seen.append(f"stop {number} for {seconds} s")

    @rule(api=st.sampled_from(["EndTxn", "TxnOffsetCommit"]))
    def lose(self, api: str) -> None:
        self.machine.proxy.lose(api)
        self.seen.append(f"lose {api}")

    @rule(politely=st.booleans())
    def rebalance(self, politely: bool) -> None:
        slot = self.machine.extra("copy")
        slot.start()
        time.sleep(0.8)
        slot.end(signal.SIGTERM if politely else signal.SIGKILL)
        self.machine.slots["copy"].remove(slot)
        self.seen.append(f"rebalance, politely: {politely}")

    def teardown(self) -> None:
        for slot in self.machine.slots["copy"]:
            slot.arm("")
        self.machine.settle()
        verdict = self.machine.verdict()
        assert verdict.clean, (self.seen, verdict.findings)


@pytest.mark.slow
def test_whatever_happens_in_whatever_order(machine: Machine) -> None:
    print(f"FAULTS_SEED={SEED}")
    told = settings(
        max_examples=4, stateful_step_count=6, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    rules = type("Drawn", (Rules,), {"machine": machine, "seen": []})
    run_state_machine_as_test(seed(SEED)(rules), settings=told)
    assert machine.feed.events > 0 and len(rules.seen) >= 10, "the rules did something"
