"""Failpoints: what they do, that they are free when off, and that each name is used exactly where it says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from streams import failpoints

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def disarmed():
    yield
    failpoints.arm("")


def test_every_name_is_passed_somewhere_and_every_place_has_a_name() -> None:
    sources = [p for folder in ("streams", "serving", "trainers") for p in (ROOT / folder).rglob("*.py")]
    code = "\n".join(path.read_text() for path in sources)
    passed = set(re.findall(r'failpoints\.hit\("([^"]+)"\)', code))
    stages = re.findall(r'transaction\.commit\([^)]*"(\w+)", failures\b', code)  # the loops that share the transaction's
    shared = re.findall(r'failpoints\.hit\(f"\{stage\}\.(\w+)"\)', code)
    assert len(stages) == 2 and len(shared) == 4
    assert passed | {f"{stage}.{name}" for stage in stages for name in shared} == set(failpoints.NAMES)


def test_off_means_nothing_happens() -> None:
    for name in failpoints.NAMES:
        failpoints.hit(name)


def test_at_the_nth_pass_alone_or_at_every_pass() -> None:
    failpoints.arm("transact.begun=raise@2; sink.written=diskfull")
    failpoints.hit("transact.begun")
    with pytest.raises(failpoints.FailpointError, match=r"transact\.begun"):
        failpoints.hit("transact.begun")
    failpoints.hit("transact.begun")
    for _ in range(2):
        with pytest.raises(OSError, match="no space left"):
            failpoints.hit("sink.written")


@pytest.mark.parametrize(("text", "said"), [
    ("transact.began=kill", r"no failpoint .transact\.began"),
    ("transact.begun=explode", "no action .explode."),
    ("transact.begun=kill@often", "often"),
])  # fmt: skip
def test_a_misspelt_failpoint_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        failpoints.parse(text)


def test_the_environment_arms_a_process_and_kill_is_kill_9() -> None:
    code = "from streams import failpoints; failpoints.hit('job.taken'); print('alive'); failpoints.hit('job.taken')"
    environment = {**os.environ, failpoints.VARIABLE: "job.taken=kill@2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-u", "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "alive\n")
