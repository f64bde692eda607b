"""Commands as events: published to `models.commands`, decided by the registry, read back from its history."""

from __future__ import annotations

import getpass
import os
import time
from typing import Any

import msgspec

from deploy.cli.output import CommandError
from deploy.shown import shown
from streams import kafka
from streams.clickhouse import rows

SOURCE = "tuneloop"


def actor() -> str:
    """Who gives a command: the user of this machine who runs it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def publish(bootstrap: str, event: msgspec.Struct, timeout_s: float = 10.0) -> str:
    """Publish a command and wait for the broker; returns its id. Raises `CommandError`."""
    record = kafka.out(event, source=SOURCE, subject=getattr(event, "model", ""))
    try:
        msgspec.json.decode(record.value or b"", type=type(event))
    except msgspec.ValidationError as error:  # nobody would take it, and the command would wait in vain
        raise CommandError(f"the command cannot be sent: {error}") from error
    client = kafka.producer(bootstrap, linger_ms=0)
    kafka.produce(client, record)
    if client.flush(timeout_s):
        raise CommandError(f"Kafka at {shown(bootstrap)} did not take the command within {timeout_s:.0f} s; is it up?")
    return next(value.decode() for name, value in record.headers if name == "ce_id")


def decision_on(client: Any, command_id: str, timeout_s: float = 15.0) -> dict[str, Any]:
    """The registry's decision on a command. Raises `CommandError` where none comes in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = rows(
            client,
            "SELECT decision, reason, version, previous, epoch FROM tuneloop.decision_made FINAL "
            "WHERE causation_id = {id:String}",
            id=command_id,
        )
        if found:
            return found[0]
        time.sleep(0.2)
    raise CommandError(
        f"the command {command_id} was published, but no decision was seen within {timeout_s:.0f} s: "
        "are `register` and `monitor` up? (`tuneloop status`)"
    )
