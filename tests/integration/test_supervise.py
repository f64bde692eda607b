"""The supervisor with small real processes: order, restarts, kill -9, and that it ends its own and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from deploy.local import supervise, supervised
from deploy.local.lineage import members
from deploy.local.ports import free_ports
from deploy.local.supervise import Process, State

FOREVER = "import time; time.sleep(600)"
# A child that leaves its parent's session, as Ray's daemons do, and says its pid.
WITH_DAEMON = (
    "import subprocess, sys, time, pathlib\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
    "pathlib.Path(sys.argv[1]).write_text(str(child.pid))\n"
    "time.sleep(600)\n"
)


def python(code: str, *arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *(str(argument) for argument in arguments))


def nobody(states: dict[str, State]) -> None:
    pass


def until(holds: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def state_of(directory: Path, name: str) -> State:
    return next(state for state in supervise.status(directory) if state.name == name)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    supervise.stop(tmp_path)
    spec = supervised.read_spec(tmp_path)
    assert spec is None or members(spec.run_id) == []


def test_it_starts_in_order_and_stops_in_reverse(directory) -> None:
    port = free_ports(1)[0]
    serve = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(600)"
    later = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
    processes = [
        Process("second", python(later, directory / "flag"), after=("first",), ready=f"file:{directory / 'flag'}"),
        Process("first", python(serve, port), ready=f"tcp:127.0.0.1:{port}"),
    ]
    (directory / "flag").touch()
    os.utime(directory / "flag", (1, 1))
    told: list[dict[str, str]] = []
    supervise.start(directory, processes, lambda s: told.append({n: one.status for n, one in s.items()}), 20)
    assert told[-1] == {"first": "ready", "second": "ready"}
    assert not any(states["second"] != "waiting" and states["first"] != "ready" for states in told)
    told.clear()
    supervise.stop(directory, lambda s: told.append({n: one.status for n, one in s.items()}))
    assert told[-1] == {"first": "stopped", "second": "stopped"}
    assert not any(states["first"] != "ready" and states["second"] in ("ready", "stopping") for states in told)


def test_children_know_their_run_and_name_and_what_they_are_given(directory) -> None:
    show = "import os, time; print(*(os.environ[n] for n in ('TUNELOOP_RUN','TUNELOOP_PROCESS','GIVEN')), flush=True)"
    supervise.start(directory, [Process("one", python(show + "; time.sleep(600)"), env={"GIVEN": "x"})], nobody, 20)
    until(lambda: supervise.log_path(directory, "one").read_text().endswith("\n"))
    spec = supervised.read_spec(directory)
    assert spec is not None
    assert supervise.log_path(directory, "one").read_text() == f"{spec.run_id} one x\n"
    assert (directory / "run" / "spec.json").stat().st_mode & 0o077 == 0


def test_what_dies_starts_again_without_its_leftovers(directory) -> None:
    supervise.start(directory, [Process("one", python(WITH_DAEMON, directory / "pid"))], nobody, 20)
    until((directory / "pid").exists)
    until(lambda: (directory / "pid").read_text() != "")
    before, daemon = state_of(directory, "one"), int((directory / "pid").read_text())
    assert before.pid is not None
    os.kill(before.pid, 9)
    until(lambda: state_of(directory, "one").restarts == 1 and state_of(directory, "one").status == "ready")
    after = state_of(directory, "one")
    assert after.last_exit == -9 and after.pid != before.pid
    assert after.started_at - before.started_at >= 0.5
    assert not alive(daemon)


def test_after_kill_9_of_the_supervisor_start_ends_what_it_left(directory) -> None:
    processes = [Process("one", python(WITH_DAEMON, directory / "pid"), ready=f"file:{directory / 'pid'}")]
    supervise.start(directory, processes, nobody, 20)
    left = [state_of(directory, "one").pid, int((directory / "pid").read_text())]
    snapshot = supervised.read_snapshot(directory)
    os.kill(snapshot.supervisor_pid, 9)
    until(lambda: not supervise.is_running(directory))
    assert state_of(directory, "one").status == "orphaned"
    supervise.start(directory, processes, nobody, 20)
    assert state_of(directory, "one").status == "ready"
    assert not any(alive(pid) for pid in left)


def test_stop_ends_ours_only_even_without_a_supervisor(directory, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("other")
    stranger = subprocess.Popen(python(FOREVER), env={**os.environ, "TUNELOOP_RUN": "another"})
    try:
        supervise.start(other, [Process("one", python(FOREVER))], nobody, 20)
        supervise.start(directory, [Process("one", python(FOREVER))], nobody, 20)
        pid = state_of(directory, "one").pid
        os.kill(supervised.read_snapshot(directory).supervisor_pid, 9)
        until(lambda: not supervise.is_running(directory))
        supervise.stop(directory)
        assert not alive(pid) and state_of(directory, "one").status == "stopped"
        assert stranger.poll() is None and state_of(other, "one").status == "ready"
    finally:
        stranger.kill()
        stranger.wait()
        supervise.stop(other)


def test_a_failed_start_names_the_process_and_leaves_nothing(directory) -> None:
    processes = [
        Process("good", python(WITH_DAEMON, directory / "pid"), ready=f"file:{directory / 'pid'}"),
        Process("bad", python("import sys; sys.exit('no such model: tiny')"), after=("good",), ready="file:/nowhere"),
    ]
    with pytest.raises(supervise.SupervisorError) as raised:
        supervise.start(directory, processes, nobody, 20)
    assert "bad ended with 1" in str(raised.value) and "no such model: tiny" in str(raised.value)
    assert str(supervise.log_path(directory, "bad")) in str(raised.value)
    assert not supervise.is_running(directory)
    assert members(supervised.read_spec(directory).run_id) == []
    assert not alive(int((directory / "pid").read_text()))


def test_a_start_that_takes_too_long_is_ended(directory) -> None:
    with pytest.raises(supervise.SupervisorError, match="slow was not ready in time"):
        supervise.start(directory, [Process("slow", python(FOREVER), ready="file:/nowhere")], nobody, 1)
    assert members(supervised.read_spec(directory).run_id) == []


def test_a_restart_that_hangs_is_killed_and_tried_again(directory) -> None:
    """Ready the first time, hangs the second, ready the third."""
    count = (
        "import pathlib, sys, time; starts, flag = map(pathlib.Path, sys.argv[1:])\n"
        "starts.open('a').write('x')\n"
        "len(starts.read_text()) == 2 or flag.write_text('')\n"
        "time.sleep(600)\n"
    )
    starts, flag = directory / "starts", directory / "flag"
    one = Process("one", python(count, starts, flag), ready=f"file:{flag}", start_limit_s=3.0)
    supervise.start(directory, [one], nobody, 20)
    os.kill(state_of(directory, "one").pid, 9)
    until(lambda: state_of(directory, "one").restarts == 2 and state_of(directory, "one").status == "ready")
    assert starts.read_text() == "xxx"
    assert "not ready within 3 s: killed" in supervise.log_path(directory, "one").read_text()


def test_a_program_that_is_not_there_fails_in_words(directory) -> None:
    with pytest.raises(supervise.SupervisorError, match=r"cannot be started: .*No such file"):
        supervise.start(directory, [Process("gone", ("/no/such/program",))], nobody, 20)


def test_a_taken_port_is_told_before_anything_starts(directory) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(supervise.SupervisorError, match=f"port {port}, which web needs, is in use by"):
            supervise.start(directory, [Process("web", python(FOREVER), ready=f"tcp:127.0.0.1:{port}")], nobody, 20)
    assert supervised.read_spec(directory) is None


def test_starting_again_is_nothing_and_another_spec_is_refused(directory) -> None:
    processes = [Process("one", python(FOREVER))]
    supervise.start(directory, processes, nobody, 20)
    pid = state_of(directory, "one").pid
    supervise.start(directory, processes, nobody, 20)
    assert state_of(directory, "one").pid == pid
    with pytest.raises(supervise.SpecChanged, match="other settings for two"):
        supervise.start(directory, [*processes, Process("two", python(FOREVER))], nobody, 20)
    assert alive(pid)


def test_two_starts_at_once_make_one_run(directory) -> None:
    processes = [Process("one", python(FOREVER))]
    threads = [threading.Thread(target=supervise.start, args=(directory, processes, nobody, 20)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(members(supervised.read_spec(directory).run_id)) == 1


def test_restart_replaces_one_process(directory) -> None:
    supervise.start(directory, [Process("a", python(FOREVER)), Process("b", python(FOREVER))], nobody, 20)
    before = {state.name: state.pid for state in supervise.status(directory)}
    supervise.restart(directory, "a")
    after = {state.name: state.pid for state in supervise.status(directory)}
    assert after["a"] != before["a"] and after["b"] == before["b"]
    with pytest.raises(supervise.SupervisorError, match="no running process is named c"):
        supervise.restart(directory, "c")


def test_what_ignores_sigterm_is_killed_after_its_grace(directory) -> None:
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    supervise.start(directory, [Process("one", python(stubborn), grace_s=0.5)], nobody, 20)
    until(lambda: supervise.log_path(directory, "one").read_text() == "1\n")
    supervise.stop(directory)
    assert state_of(directory, "one").last_exit == -9


@pytest.mark.long  # the end-to-end tests hold its sockets and its end to account as well
def test_a_private_ray_listens_on_the_loopback_wants_its_token_and_ends_with_its_process(directory) -> None:
    start_ray = (
        "import pathlib, sys, time; from deploy.local.ray import start_ray\n"
        "start_ray(pathlib.Path(sys.argv[1]), num_cpus=1)\n"
        "import ray; print(ray.get(ray.remote(lambda: 7).remote()))\n"
        "address = ray.get_runtime_context().gcs_address\n"
        "pathlib.Path(sys.argv[1], 'up').write_text(address); time.sleep(600)\n"
    )
    processes = [Process("serve", python(start_ray, directory), ready=f"file:{directory / 'up'}")]
    supervise.start(directory, processes, nobody, 90)
    everything = members(supervised.read_spec(directory).run_id)
    listening = [c for p in everything for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert len(everything) > 4 and len(listening) > 4
    assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}
    intrude = f"import ray; ray.init('{(directory / 'up').read_text()}', logging_level='error')"
    # Without this switch a client looks for 127.0.0.1 at the machine's outer address, where nobody listens.
    environment = {"PATH": os.environ["PATH"], "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    intruder = subprocess.run(python(intrude), env=environment, capture_output=True, text=True, timeout=60)
    assert intruder.returncode != 0 and "AuthenticationError" in intruder.stderr
    os.kill(state_of(directory, "serve").pid, 9)
    until(lambda: state_of(directory, "serve").status != "ready")
    supervise.stop(directory)
    assert not any(alive(process.pid) for process in everything)
