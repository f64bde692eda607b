"""What `status` and `models` say of quality that is not known: a line for each such model, with what would help."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from streams.monitor.known import Quality, quality_of

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

ASKED_WITHIN_S = 3.0


def told(model: str, quality: Quality) -> str:
    """The line on one model; "" where its quality is known."""
    return "" if quality.known else f"{model}: {quality.why}"


def unknown(connect: Callable[[], Client], models: Iterable[str]) -> list[str]:
    """A line for each of these models whose quality is unknown; none where ClickHouse does not say within 3 s.

    Whoever asks after what runs must be answered, whatever does not.
    """
    lines: list[str] = []

    def ask() -> None:
        from clickhouse_connect.driver.exceptions import ClickHouseError

        from deploy.cli.output import CommandError

        try:
            client = connect()
            lines.extend(filter(None, (told(model, quality_of(client, model)) for model in models)))
        except (ClickHouseError, CommandError):  # its own line says that it is not ready
            return

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ASKED_WITHIN_S)
    return list(lines)
