"""TCP ports on the loopback: is one free, give me some, wait until one answers."""

from __future__ import annotations

import contextlib
import ipaddress
import random
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"
LOWEST = 20_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone by its very name: a name that resolves to it now may soon be another's."""
    try:
        return ipaddress.ip_address(host.strip().strip("[]")).is_loopback
    except ValueError:
        return host.strip().lower() == "localhost"


def hosts_of(bootstrap: str) -> list[str]:
    """The hosts in Kafka's list of addresses."""
    return [one.strip().rpartition(":")[0] or one.strip() for one in bootstrap.split(",") if one.strip()]


def port_free(port: int, host: str = LOOPBACK) -> bool:
    """True when a server could listen on host:port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose last owner has just died is free, one that is listened on is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def free_ports(count: int, host: str = LOOPBACK) -> list[int]:
    """`count` different free ports. Held together until all are known, so that none is given twice.

    Below the range from which the system numbers outgoing connections: within it, any connection made while a
    server is being restarted may take the server's port (even one to that very port, which then meets itself).
    """
    with contextlib.ExitStack() as held:
        found: list[int] = []
        for port in random.sample(range(LOWEST, _lowest_ephemeral()), k=1_000):
            one = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                one.bind((host, port))
                found.append(port)
            if len(found) == count:
                return found
    raise OSError(f"no {count} free ports between {LOWEST} and {_lowest_ephemeral()} on {host}")


def _lowest_ephemeral() -> int:
    """The lowest port of outgoing connections: Linux says its own, elsewhere IANA's 49152."""
    try:
        low = int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        low = 49_152
    return low if low >= LOWEST + 2_000 else 65_536


def port_answers(port: int, host: str = LOOPBACK, timeout_s: float = 0.5) -> bool:
    """True when something accepts a connection on host:port."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return True
    except OSError:
        return False
