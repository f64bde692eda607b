"""Who may ask the local ClickHouse: two users with passwords, and programs of this machine instead of web pages.

`make_passwords` is `up`'s; a server without passwords does not start. A request is judged by its headers and its URL
alone, before its body is read. Pure but for the two functions on files.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from deploy.local.clickhouse_error import EngineError, denied
from deploy.local.errors import LocalPartError
from deploy.local.ports import is_loopback
from deploy.local.secret_files import make_secret

WRITER, ANALYST = "tuneloop", "analyst"
USERS = (WRITER, ANALYST)
_SHORTEST = 32


def make_passwords(folder: Path) -> None:
    """Writes a password for each user that has none: one file each, for its owner only."""
    for user in USERS:
        make_secret(folder / user)


def read_passwords(folder: Path) -> dict[str, str]:
    """The password of each user. Raises LocalPartError for one that is missing, short or open to others."""
    return {user: _password(folder / user) for user in USERS}


def _password(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise LocalPartError(f"no password at {path} ({error.strerror}): `tuneloop up` makes it") from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise LocalPartError(f"{path} belongs to somebody else or is open to others: `chmod 600` it, or remove it")
        password = os.read(descriptor, 1_000).decode(errors="replace").strip()
    finally:
        os.close(descriptor)
    if len(password) < _SHORTEST:
        raise LocalPartError(f"{path} has under {_SHORTEST} characters: remove it, and `tuneloop up` makes another")
    return password


def check_access(headers: Mapping[str, str], url: Mapping[str, str], port: int, passwords: Mapping[str, str]) -> str:
    """The user who asks. Raises EngineError for a request that a web page may have caused, and for a wrong password."""
    check_site(headers, port)
    user, password = given_login(headers, url)
    known = passwords.get(user, "")
    if not hmac.compare_digest(password.encode(), known.encode()) or not known:
        raise EngineError(516, _UNKNOWN)
    return user


_UNKNOWN = (
    "Code: 516. DB::Exception: Authentication failed: user or password is wrong. `tuneloop connect` shows how to "
    "ask. (AUTHENTICATION_FAILED)"
)


def check_site(headers: Mapping[str, str], port: int) -> None:
    """Refuses what a page of another origin makes a browser send; programs send none of these headers."""
    site = headers.get("sec-fetch-site", "none")
    if site not in ("none", "same-origin"):
        raise denied(f"only programs of this machine may ask, not a web page (Sec-Fetch-Site: {site[:40]})")
    host = headers.get("host", "")
    if not _of_loopback(host):
        raise denied("only programs of this machine may ask: use 127.0.0.1 or localhost as the host")
    origin = headers.get("origin")
    if origin is not None and (origin != f"http://{host}" or origin not in _own_origins(port)):
        raise denied("only programs of this machine may ask, not a page of another origin")


def _own_origins(port: int) -> set[str]:
    return {f"http://{host}:{port}" for host in ("127.0.0.1", "localhost", "[::1]")}


def _of_loopback(host: str) -> bool:
    """True for a name of the loopback: any other name may be turned to it by whoever owns the name."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def given_login(headers: Mapping[str, str], url: Mapping[str, str]) -> tuple[str, str]:
    """User and password of a request, from wherever ClickHouse's clients put them."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            user, _, password = base64.b64decode(credentials, validate=True).decode().partition(":")
            return user, password
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return "", ""
    if "x-clickhouse-user" in headers or "x-clickhouse-key" in headers:
        return headers.get("x-clickhouse-user", ""), headers.get("x-clickhouse-key", "")
    return url.get("user", ""), url.get("password", "")
