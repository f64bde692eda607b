"""Starting order, pauses between starts, and probes."""

from __future__ import annotations

import pytest

from deploy.local.probe import is_ready, port_of
from deploy.local.supervised import Process, Spec, read_spec, starting_order, write_spec
from deploy.local.supervisor import next_pause_s


def test_each_comes_behind_what_it_needs() -> None:
    processes = [Process("c", ("x",), after=("b",)), Process("b", ("x",), after=("a",)), Process("a", ("x",))]
    assert [process.name for process in starting_order(processes)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("processes", "complaint"),
    [
        ([Process("a", ("x",)), Process("a", ("y",))], "two processes are named a"),
        ([Process("a", ("x",), after=("b",))], "a comes after b, which is not there"),
        ([Process("a", ("x",), after=("b",)), Process("b", ("x",), after=("a",))], "wait for each other: a, b"),
    ],
)
def test_an_order_that_cannot_be_is_refused(processes: list[Process], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        starting_order(processes)


def test_pauses_double_to_a_limit_and_health_forgives() -> None:
    pauses = [0.0]
    for _ in range(9):
        pauses.append(next_pause_s(pauses[-1], ran_s=1))
    assert pauses[1:] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert next_pause_s(30, ran_s=61) == 0.5


def test_a_spec_reads_back_as_it_was_written(tmp_path) -> None:
    spec = Spec("id", starting_order([Process("a", ("x", "y"), {"K": "v"}, ready="tcp:127.0.0.1:1", grace_s=3)]))
    write_spec(tmp_path, spec)
    assert read_spec(tmp_path) == spec


def test_probes_are_refused_when_unknown() -> None:
    assert port_of("http://127.0.0.1:80/ping") == 80
    assert port_of("http:http://127.0.0.1:81/ping") == 81
    assert port_of("tcp:127.0.0.1:82") == 82
    assert port_of(None) is None
    for ask in (port_of, lambda probe: is_ready(probe, 0.0)):
        with pytest.raises(ValueError, match="a probe is"):
            ask("exec:true")
