"""Made-up ids of answers, secrets that are not everybody's: refused at once, with a reason, wherever they come in."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.addresses import identity_secret, make_identity_secret
from deploy.settings import Settings, SettingsError
from schemas.codec import ContractError
from schemas.identity import (
    PREFIXES,
    InferenceIds,
    MadeUpIdError,
    derive_key,
    key_id,
    parse_answer_id,
    subject_hash,
)
from streams import kafka
from tests.ids import IDS, SECRET, answer

OTHERS = InferenceIds(SECRET[::-1])
MADE_UP = [
    "chatcmpl-1", "", "chatcmpl-" + "0" * 60, answer("x")[:-1], answer("x") + "0", answer("x").upper(), " " + answer("x"),
    answer("x") + "\n", answer("x").replace("chatcmpl-", "resp_"), OTHERS.sign("0" * 12 + "7" + "0" * 3 + "8" + "0" * 15), "../" + answer("x"), "chatcmpl-" + "é" * 60,
]  # fmt: skip


@pytest.mark.parametrize("made_up", MADE_UP)
def test_a_made_up_id_is_a_dead_letter_for_join_and_monitor_alike(made_up: str) -> None:
    body = json.dumps({"inference_id": made_up, "metric_name": "correct", "value": True}).encode()
    with pytest.raises((MadeUpIdError, ContractError)):
        IDS.check(kafka.decode(kafka.Record("usage.feedback", 0, 0, 1, None, body, []))[1])


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("tenant", [0, 1, 0xFFFFFFFF])
def test_an_id_says_what_it_is_and_holds_together(prefix: str, tenant: int) -> None:
    issued = IDS.issue(prefix, tenant)
    parts = parse_answer_id(issued)
    assert parts is not None and (parts.prefix, parts.tenant, parts.key_id) == (prefix, tenant, key_id(SECRET))
    assert IDS.genuine(issued) and not OTHERS.genuine(issued)
    elsewhere = IDS.sign(parts.uuid, prefix, (tenant + 1) % 2**32)
    assert not IDS.genuine(elsewhere[: -len(parts.mac)] + parts.mac), "a signature is of its tenant"


@pytest.mark.parametrize(
    ("uuid", "prefix", "tenant"),
    [("0" * 32, "chatcmpl-", 0), ("x", "resp_", 0), ("0" * 12 + "7" + "0" * 3 + "8" + "0" * 15, "mine-", 0),
     ("0" * 12 + "7" + "0" * 3 + "8" + "0" * 15, "cmpl-", 2**32), ("0" * 12 + "7" + "0" * 3 + "8" + "0" * 15, "cmpl-", -1)],
)  # fmt: skip
def test_nothing_else_is_ever_signed(uuid: str, prefix: str, tenant: int) -> None:
    with pytest.raises(ValueError, match="no id is made of"):
        IDS.sign(uuid, prefix, tenant)


@given(st.sampled_from(MADE_UP), st.text(max_size=8), st.integers(0, 80))
def test_no_change_of_an_id_is_genuine(base: str, put: str, at: int) -> None:
    changed = base[:at] + put + base[at:]
    assert IDS.genuine(changed) == (changed == answer("x"))
    assert (parse_answer_id(changed) is None) or len(changed) == len(changed.encode())


def test_every_purpose_has_a_key_of_its_own() -> None:
    keys = {derive_key(SECRET, purpose) for purpose in ("answer ids", "erasures", "split", "key id", "")}
    assert len(keys) == 5 and SECRET not in keys
    assert subject_hash(SECRET, "jane") != subject_hash(SECRET[::-1], "jane")


def _settings(folder: Path, **fields: str) -> Settings:
    return Settings(data_dir=str(folder), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [None, "", "short", "0" * 31, "\n" * 40])
def test_a_process_without_the_secret_ends_with_one_line(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "mine").write_text(text)
    with pytest.raises(SettingsError) as said:
        identity_secret(_settings(tmp_path, identity_secret_file=str(tmp_path / "mine")))
    assert "\n" not in str(said.value) and str(tmp_path / "mine") in str(said.value)
    assert not (tmp_path / "secrets").exists(), "nobody but `up` makes one"


def test_up_makes_the_secret_once_whole_and_for_its_owner_alone(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    make_identity_secret(settings)
    made = identity_secret(settings)
    make_identity_secret(settings)
    assert identity_secret(settings) == made and len(made) == 64
    assert os.stat(settings.secret_file).st_mode & 0o777 == 0o600
    make_identity_secret(_settings(tmp_path / "other", identity_secret_file=str(tmp_path / "given")))
    assert not (tmp_path / "given").exists(), "a named file is somebody's own to make"
