"""The one way to ClickHouse: an unchanged clickhouse-connect client on a URL.

Who asks comes from the environment, so that child processes and replicas have it: a user, and the file of its password.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

T = TypeVar("T")
USER_VARIABLE = "TUNELOOP_CLICKHOUSE_USER"
PASSWORD_FILE_VARIABLE = "TUNELOOP_CLICKHOUSE_PASSWORD_FILE"
# ClickHouse's codes for a request that will not be let in however often it is made.
_NOT_LET_IN = (194, 497, 516)
# Parameters go into the URL, of which ClickHouse takes 1 MiB.
KEYS_PER_STATEMENT = 1_000
# For statements that hold a person's id or a record's key: ClickHouse puts parameters in before it notes a statement in
# its own tables. The server's text log is another matter: that is its operator's.
UNLOGGED = {
    "log_queries": 0, "log_query_threads": 0, "log_query_views": 0, "opentelemetry_start_trace_probability": 0,
}  # fmt: skip
# It logs every refused connection as an error of its own; whoever connects is told by the exception.
logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Login:
    """A user of ClickHouse, and the file that holds its password. Empty: the server's default user without one."""

    user: str = ""
    password_file: str = ""

    @property
    def password(self) -> str:
        return Path(self.password_file).read_text().strip() if self.password_file else ""


def credentials(environment: Mapping[str, str] = os.environ) -> Login:
    """Who this process is to ClickHouse, read anew at each call."""
    return Login(environment.get(USER_VARIABLE, ""), environment.get(PASSWORD_FILE_VARIABLE, ""))


def connect(url: str, timeout_s: float = 30.0, login: Login | None = None) -> Client:
    """A client for `http://host:port`, waiting up to `timeout_s` for the server. Raises `ClickHouseError`."""
    import clickhouse_connect  # 0.3 s, which commands that ask nothing need not wait for
    from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError

    who = login or credentials()
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return clickhouse_connect.get_client(
                dsn=url, interface=urlsplit(url).scheme, username=who.user or None, password=who.password,
                autogenerate_session_id=False, send_receive_timeout=60,
                compress=not _here(url),  # to squeeze what stays on this machine only takes time
            )
        except OSError as error:
            raise OperationalError(f"no password of ClickHouse's user {who.user!r}: {error}") from error
        except ClickHouseError as error:
            if time.monotonic() > deadline or getattr(error, "code", None) in _NOT_LET_IN:
                raise
            time.sleep(0.2)


def _here(url: str) -> bool:
    return urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")


def in_chunks(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Consecutive parts of at most `size` values."""
    return (values[start : start + size] for start in range(0, len(values), size))


def rows(client: Client, sql: str, **parameters: Any) -> list[dict[str, Any]]:
    """A query's rows as dictionaries. `parameters` are server-side: `{name:Type}` in the SQL."""
    return list(client.query(sql, parameters=parameters or None).named_results())
