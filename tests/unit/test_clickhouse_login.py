"""Who Tuneloop is to ClickHouse: local users' files, or what the settings name; never within an address."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.addresses import use_credentials
from deploy.clickhouse_login import analyst, login_variables, writer
from deploy.local_run import processes
from deploy.settings import Settings, SettingsError
from streams import kafka_security
from streams.clickhouse import PASSWORD_FILE_VARIABLE, USER_VARIABLE, Login, credentials

AWAY = {"clickhouse_url": "http://db.example.org:8123", "kafka_bootstrap": "127.0.0.1:1"}


def test_a_local_clickhouse_has_a_writer_and_an_analyst(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path), clickhouse_user="someone", clickhouse_password_file="elsewhere")
    folder = tmp_path / "secrets" / "clickhouse"
    assert writer(settings) == Login("tuneloop", str(folder / "tuneloop"))
    assert analyst(settings) == Login("analyst", str(folder / "analyst"))


def test_a_clickhouse_elsewhere_has_the_users_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    settings = Settings(**AWAY, clickhouse_user="us", clickhouse_password_file=str(tmp_path / "password"))
    assert writer(settings) == analyst(settings) == Login("us", str(tmp_path / "password"))
    assert writer(settings).password == "secret" and Login().password == ""
    assert writer(Settings(**AWAY)) == Login()


def test_a_process_and_its_children_have_it_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (USER_VARIABLE, PASSWORD_FILE_VARIABLE):
        monkeypatch.setenv(variable, "before")
    settings = Settings(data_dir=str(tmp_path), kafka_bootstrap="127.0.0.1:1", clickhouse_user="someone")
    monkeypatch.setenv(kafka_security.VARIABLE, "")
    monkeypatch.setenv("TUNELOOP_IDENTITY_SECRET_FILE", "")
    use_credentials(settings)
    assert credentials() == writer(settings)
    started = {process.name: process for process in processes(settings)}
    assert login_variables(settings).items() <= started["monitor"].env.items()
    argv = started["clickhouse"].argv
    assert argv[argv.index("--passwords") + 1] == str(tmp_path / "secrets" / "clickhouse")
    assert "clickhouse" not in {process.name for process in processes(Settings(data_dir=str(tmp_path), **AWAY))}


@pytest.mark.parametrize("address", ["http://us:secret@h:1", "https://us@h", "http://:secret@h", "//us:secret@h"])
def test_no_password_in_an_address(address: str) -> None:
    with pytest.raises(SettingsError, match="clickhouse_user and a file that clickhouse_password_file") as raised:
        Settings(clickhouse_url=address)
    assert "secret" not in str(raised.value)
