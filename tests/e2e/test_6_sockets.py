"""Nothing of a run listens beyond this machine."""

from __future__ import annotations

from urllib.parse import urlsplit

import psutil
import pytest

from deploy.addresses import METERED, metrics_urls
from tests.e2e.system import System

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


def listening(processes: list[psutil.Process]) -> list[tuple[str, str, int]]:
    """(process, address, port) of every listening TCP socket of these processes, and every bound UDP one."""
    found = []
    for process in processes:
        for one in process.net_connections("inet"):
            if one.status == psutil.CONN_LISTEN or (one.status == psutil.CONN_NONE and one.laddr and not one.raddr):
                found.append((" ".join(process.cmdline()[:4]), one.laddr.ip, one.laddr.port))
    return found


def test_every_listening_socket_is_on_the_loopback(system: System) -> None:
    found = listening(system.processes())
    ports = {port for _, _, port in found}
    where = system.where
    known = {int(where.bootstrap.rpartition(":")[2]), urlsplit(where.clickhouse).port, urlsplit(where.http).port}
    known |= {urlsplit(metrics_urls(system.settings)[name]).port for name in METERED}
    assert known <= ports, "the parts' own ports were not even seen: this test looks in the wrong place"
    assert [one for one in found if one[1] not in LOOPBACK] == []
