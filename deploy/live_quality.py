"""What `status` and `models` say below their tables: of quality that is not known, with what would help."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from streams.monitor.known import Quality, quality_of

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

ASKED_WITHIN_S = 3.0
T = TypeVar("T")


def told(model: str, quality: Quality) -> str:
    """The line on one model; "" where its quality is known."""
    return "" if quality.known else f"{model}: {quality.why}"


def unknown(client: Client, models: Iterable[str]) -> list[str]:
    """A line for each of these models whose quality is unknown. Raises `ClickHouseError`."""
    return list(filter(None, (told(model, quality_of(client, model)) for model in models)))


def in_time(connect: Callable[[], Client], *askers: Callable[[Client], Iterable[T]]) -> list[T]:
    """What each of these finds; nothing of those that ClickHouse does not answer within 3 s.

    Whoever asks after what runs must be answered, whatever does not.
    """
    lines: list[T] = []

    def ask() -> None:
        from clickhouse_connect.driver.exceptions import ClickHouseError

        from deploy.cli.output import CommandError
        from streams.artifact_paths import ArtifactError

        try:
            client = connect()
            for asker in askers:
                lines.extend(asker(client))
        except (ClickHouseError, CommandError, ArtifactError):  # its own line says that it is not ready
            return

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ASKED_WITHIN_S)
    return list(lines)
