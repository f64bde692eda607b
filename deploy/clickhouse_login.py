"""Who Tuneloop's processes are to ClickHouse: the local users that `up` made, or what the settings name."""

from __future__ import annotations

from pathlib import Path

from deploy.local.clickhouse_access import ANALYST, WRITER
from deploy.settings import Settings
from streams.clickhouse import PASSWORD_FILE_VARIABLE, USER_VARIABLE, Login


def passwords_folder(settings: Settings) -> Path:
    """Where `up` keeps the local users' passwords."""
    return settings.data / "secrets" / "clickhouse"


def writer(settings: Settings) -> Login:
    """The user that lands events, migrates and deletes."""
    return _login(settings, WRITER)


def analyst(settings: Settings) -> Login:
    """The user that only reads. A ClickHouse elsewhere has its own rights: the settings' user, then."""
    return _login(settings, ANALYST)


def _login(settings: Settings, local_user: str) -> Login:
    if settings.clickhouse_url:
        file = settings.clickhouse_password_file
        return Login(settings.clickhouse_user, str(Path(file).absolute()) if file else "")
    return Login(local_user, str(passwords_folder(settings) / local_user))


def login_variables(settings: Settings) -> dict[str, str]:
    """What `streams.clickhouse` reads from the environment of a process with these settings."""
    login = writer(settings)
    return {USER_VARIABLE: login.user, PASSWORD_FILE_VARIABLE: login.password_file}
