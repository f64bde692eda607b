"""From a request's `model` to a version, or a 404 that says what there is."""

from __future__ import annotations

import pytest

from schemas.events import ModelStateChanged, ShardSet, Version
from serving.errors import ApiError
from serving.routing import parse_model, resolve

DATA = ShardSet(path="p", digest="d", shards=1, rows=1)
VERSIONS = [
    Version(version=n, digest=f"d{n}", path="p", base="b", base_digest="bd", job_id="j", fingerprint=[], new_data=DATA)
    for n in (1, 2)
]
STATES = {
    "support": ModelStateChanged(
        model="support", base="b", epoch=3, champion=1, previous=2, versions=VERSIONS, change="x", reason=""
    )
}
MODELS = {"support", "sales"}


@pytest.mark.parametrize(
    ("requested", "resolved"),
    [
        ("support", ("support", 1)),
        ("support@champion", ("support", 1)),
        ("support@", ("support", 1)),
        ("support@2", ("support", 2)),
        ("support@0", ("support", 0)),
        ("sales", ("sales", 0)),
        ("sales@champion", ("sales", 0)),
        ("sales@0", ("sales", 0)),
    ],
)
def test_what_answers(requested: str, resolved: tuple[str, int]) -> None:
    assert resolve(requested, MODELS, STATES) == resolved


@pytest.mark.parametrize("alias", ["3", "-1", "²", "latest", "1.0", "1@2", " 1", pytest.param("9" * 5_000, id="9...9")])
def test_a_version_that_is_not_there(alias: str) -> None:
    with pytest.raises(ApiError, match=r"there are support@0, support@1, support@2 and support@champion") as caught:
        resolve(f"support@{alias}", MODELS, STATES)
    assert (caught.value.status, caught.value.param, caught.value.code) == (404, "model", "model_not_found")


@pytest.mark.parametrize("requested", ["", "@1", "Support", "gpt-4o", "support2"])
def test_a_model_that_is_not_there(requested: str) -> None:
    with pytest.raises(ApiError, match="does not exist; known: sales, support") as caught:
        resolve(requested, MODELS, STATES)
    assert caught.value.status == 404


def test_names_and_aliases() -> None:
    assert parse_model("a") == ("a", "champion") and parse_model("a@b@c") == ("a", "b@c")
