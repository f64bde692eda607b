"""Settings: flag > environment > file > default, closed, and every error names the setting and where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy.addresses import addresses
from deploy.settings import Settings, SettingsError, as_text, load


def from_file(folder: Path, text: str, flags: dict[str, Any] | None = None, **environment: str) -> Settings:
    path = folder / "tuneloop.toml"
    path.write_text(text)
    return load({"config": str(path), **(flags or {})}, environment)


def test_without_anything_everything_has_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load({}, {})
    assert settings == Settings() and settings.sources == {} and list(settings.models) == ["support"]


def test_each_source_beats_the_next(tmp_path: Path) -> None:
    text = "http_port = 1\nserve_slots = 2\ndata_dir = 'file'\n"
    settings = from_file(
        tmp_path, text, {"http_port": 3, "serve_slots": None}, TUNELOOP_HTTP_PORT="2", TUNELOOP_SERVE_SLOTS="9"
    )
    assert (settings.http_port, settings.serve_slots, settings.data_dir) == (3, 9, "file")
    assert (settings.serve_replicas, settings.prepare_linger_s) == (1, 1.0)
    assert settings.sources == {
        "http_port": "flag", "serve_slots": "TUNELOOP_SERVE_SLOTS", "data_dir": str(tmp_path / "tuneloop.toml"),
    }  # fmt: skip


def test_the_file_is_found_by_flag_by_environment_and_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, port in (("a.toml", 1), ("b.toml", 2), ("tuneloop.toml", 3)):
        (tmp_path / name).write_text(f"http_port = {port}\n")
    assert load({"config": "a.toml"}, {"TUNELOOP_CONFIG": "b.toml"}).http_port == 1
    assert load({}, {"TUNELOOP_CONFIG": "b.toml"}).http_port == 2
    assert load({}, {}).http_port == 3


def test_models_with_their_policies(tmp_path: Path) -> None:
    text = '[models.support]\nmin_new_examples = 5\ncooldown_s = 2\n[models.sales]\nquality_metric = "ok"\n'
    text += 'metrics = {ok = "boolean", stars = "float"}\nrecipe = {rank = 8}\nthresholds = {stars = 4}\n'
    settings = from_file(tmp_path, text)
    assert list(settings.models) == ["support", "sales"]
    assert (settings.models["support"].min_new_examples, settings.models["support"].cooldown_s) == (5, 2.0)
    assert settings.models["sales"].recipe == {"rank": 8.0}
    assert (settings.models["sales"].thresholds, settings.models["support"].thresholds) == ({"stars": 4.0}, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http_prot = 1", r"unknown setting 'http_prot'; known: .*http_port"),
        ("http_port = 'eighty'", r"http_port \(from .*tuneloop.toml\): expected int, got 'eighty'"),
        ("http_port = true", "http_port .*: expected int, got True"),
        ("http_port = 80.5", "http_port .*: expected int, got 80.5"),
        ("data_dir = 5", "data_dir .*: expected str, got 5"),
        ("http_port = ", "not valid TOML"),
        ("models = 3", r"models: expected tables \[models.NAME\], got 3"),
        ("[models]", "models: at least one model is needed"),
        ("[models]\nsupport = 1", "models.support: Expected `object`, got `int`"),
        ("[models.support]\nmin_examples = 1", "models.support: .*min_examples"),
        ("[models.support]\nmin_new_examples = 'many'", r"models.support: .*\$.min_new_examples"),
        ("[models.support]\nquality_metric = 'rating'", "models.support: quality_metric 'rating' must be .* a boolean"),
        ("[models.support]\nquality_metric = 'mood'", "models.support: quality_metric 'mood' must be one of metrics"),
        ("[models.support.metrics]\ncorrect = 'bool'", "models.support: metrics: expected `boolean` or `float`"),
        ("[models.support]\ntest_share = 1.5", "models.support: test_share: expected between 0 and 1, got 1.5"),
        ("[models.support.thresholds]\nmood = 3", "models.support: thresholds: 'mood' is not a float metric; those are: rating"),
        ("[models.support.thresholds]\ncorrect = 1", "models.support: thresholds: 'correct' is not a float metric"),
        ("[models.support.thresholds]\nrating = 'high'", r"models.support: .*\$.thresholds"),
        ("join_wait_days = 0", r"join_wait_days \(from .*tuneloop.toml\): expected a number of days above 0, got 0"),
        ("join_wait_days = -2", "join_wait_days .*: expected a number of days above 0, got -2"),
        ("join_wait_days = inf", "join_wait_days .*: expected a number of days above 0, got inf"),
        ("join_wait_days = nan", "join_wait_days .*: expected a number of days above 0, got nan"),
        ("max_refused = -1", r"max_refused \(from .*tuneloop.toml\): expected 0 .no bound. to 1000000 records, got -1"),
        ("[models.support]\ncorrections = 'nobody'", "models.support: corrections: expected one of anyone, trusted, got 'nobody'"),
        ("[models.support]\nsmall_data = 'guess'", "models.support: small_data: expected one of widen, wait, got 'guess'"),
        ("[models.support]\nmax_rows_per_subject = 0", "models.support: max_rows_per_subject: expected between 1 and 1,000,000,000, got 0"),
        ("[models.support]\nreplay_share = -1", "models.support: replay_share: .*got -1"),
        ("[models.support]\nbaseline_answers = 50", "models.support: baseline_answers: expected between 100 and 1,000,000,000, got 50"),
        ("[models.support]\nmax_retention_loss = 0", "models.support: max_retention_loss: expected between 0.001 and 1, got 0"),
        ("[models.support]\ncooldown_s = 1e12", "models.support: cooldown_s: expected between 0 and 31,536,000, got 1000000000000.0"),
        ("[models.support]\njob_limit_s = inf", "models.support: job_limit_s: .*got inf"),
        ("[models.support]\nconfidence = 1.0", "models.support: confidence: expected between 0.5001 and 0.9999, got 1.0"),
        ("[models.support]\nfalse_alarm_days = nan", "models.support: false_alarm_days: .*got nan"),
        ("[models.support]\ntriggers = ['weather']", "models.support: triggers: expected some of drift, volume, .*got .'weather'."),
        ("[models.support]\ntest_share = 0.6\nvalidation_share = 0.5", "models.support: .*1.1 of all rows judge"),
        ("trainers = 0", r"trainers \(from .*tuneloop.toml\): expected 1 or more, got 0"),
        ("trainer_hours_per_day = -1", r"trainer_hours_per_day \(from .*\): expected 0 .no bound. or more, got -1"),
    ],
)
def test_a_wrong_setting_is_named_with_where_it_stands(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        from_file(tmp_path, text)
    assert "tuneloop.toml" in str(caught.value)


def test_a_wrong_value_in_the_environment_or_in_a_flag(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"serve_slots \(from TUNELOOP_SERVE_SLOTS\): expected int, got 'x'"):
        from_file(tmp_path, "", TUNELOOP_SERVE_SLOTS="x")
    with pytest.raises(SettingsError, match=r"http_port \(from flag\): expected int"):
        from_file(tmp_path, "", {"http_port": "x"})


def test_a_file_that_was_named_must_be_there_and_be_text(tmp_path: Path) -> None:
    for missing in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(SettingsError, match="no settings file at"):
            load({"config": str(missing)}, {})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="not valid TOML"):
        load({"config": str(tmp_path / "binary.toml")}, {})


def test_places_follow_the_data_directory(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path))
    assert settings.artifact_root == str(tmp_path / "artifacts")
    assert settings.secret_file == tmp_path / "secrets" / "identity"
    assert Settings(artifacts="s3://b/x", identity_secret_file="k").artifact_root == "s3://b/x"
    assert Settings(identity_secret_file="k").secret_file == Path("k")


def test_lists_come_from_the_file_and_with_commas_from_the_environment(tmp_path: Path) -> None:
    text = "cors_origins = ['https://a.example', 'https://b.example']\n"
    settings = from_file(tmp_path, text, TUNELOOP_ALLOWED_HOSTS="a.example, b.example,")
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.allowed_hosts == ("a.example", "b.example")
    assert load({}, {"TUNELOOP_CORS_ORIGINS": as_text(settings.cors_origins)}).cors_origins == settings.cors_origins
    with pytest.raises(SettingsError, match=r"cors_origins .* expected a list of str"):
        from_file(tmp_path, "cors_origins = 1\n")


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:8000"), ("0.0.0.0", "http://127.0.0.1:8000"), ("::", "http://127.0.0.1:8000"),
     ("10.1.2.3", "http://10.1.2.3:8000"), ("fd00::1", "http://[fd00::1]:8000")],
)  # fmt: skip
def test_the_endpoint_is_where_it_listens(host: str, url: str) -> None:
    settings = Settings(
        http_host=host, http_port=8000, allow_unauthenticated=True, kafka_bootstrap="k:1", clickhouse_url="http://c:1"
    )
    assert addresses(settings).http == url


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('http_host = "0.0.0.0"', r"^http_host \(from .*tuneloop.toml\): '0.0.0.0' .* allow_unauthenticated = true$"),
        ('cors_origins = ["*"]', r"^cors_origins: '\*' is no exact origin"),
        ('allowed_hosts = ["a.example:80"]', r"^allowed_hosts: 'a.example:80' is no host name"),
    ],
)
def test_who_may_come_in_is_said_exactly(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        from_file(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "corrections"),
    [
        ("", "anyone"),
        ('http_host = "0.0.0.0"\nallow_unauthenticated = true', "trusted"),
        ('http_host = "10.0.0.5"\nallow_unauthenticated = true\n[models.support]', "trusted"),
        ('http_host = "0.0.0.0"\nallow_unauthenticated = true\n[models.support]\ncorrections = "anyone"', "anyone"),
        ('http_host = "::1"\n[models.support]', "anyone"),
        ('kafka_bootstrap = "127.0.0.1:9092, localhost:9093"', "anyone"),
        ('kafka_bootstrap = "127.0.0.1:9092,kafka.example:9093"', "trusted"),  # where `serve` runs is not known here
        ('[models.support]\ncorrections = "trusted"', "trusted"),
    ],
)
def test_where_strangers_come_in_one_alone_overrules_nobody(tmp_path: Path, text: str, corrections: str) -> None:
    path = tmp_path / "tuneloop.toml"
    path.write_text(text)
    assert load({"config": str(path)}, {}).models["support"].corrections == corrections


def test_more_test_rows_than_are_ever_asked_are_refused(tmp_path: Path) -> None:
    """Every candidate would be, for too few."""
    path = tmp_path / "tuneloop.toml"
    path.write_text("[models.support]\nmin_holdout_examples = 2001")
    with pytest.raises(SettingsError, match="min_holdout_examples: expected between 1 and 2,000, got 2001"):
        load({"config": str(path)}, {})
