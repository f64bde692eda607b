"""One plausible event of every type, with fresh ids: what tests produce where the content does not matter."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from schemas import events as e
from tests.broker import fresh
from tests.ids import KEY_ID, answer

SHARDS = e.ShardSet(path="sets/support/0.json", digest="0" * 64, shards=1, rows=200)
CHECK = e.Check(
    check="retention", dataset="hold-out", passed=True, reason="", n=200, n_required=150, champion_mean=0.9,
    candidate_mean=0.91, difference=0.01, bound=-0.02, margin=0.05, discordance=0.1, power=0.95, confidence=0.95,
)  # fmt: skip
_FIXED: dict[str, Any] = {
    "messages": [e.Message(role="user", content="Where is my parcel?")],
    "prompt": "",
    "new_data": SHARDS,
    "data": SHARDS,
    "checks": [CHECK],
    "fingerprint": [0.25, -1.5],
    "versions": [],
    "rows_by_kind": {"sft": 3},
    "rows_by_split": {"train": 2, "test": 1},
    "dropped": {"duplicate": 1},
    "waits_for": {"new examples": "3 of 200 committed in shards"},
    "input_tokens": 11,
    "latency_ms": 12.5,
    "metric_name": "correct",
    "value": True,
    "kind": "sft",
    "key_id": KEY_ID,
}
_IDS = ("record_id", "feedback_id", "shard_id", "job_id", "drift_id", "subject_id")
_BY_TYPE: dict[str, Any] = {"StrType": "word", "IntType": 1, "FloatType": 0.5, "BoolType": True, "DictType": {}}


def example(event: type[msgspec.Struct], model: str, **fields: Any) -> Any:
    """An event of this type, every required field filled; `fields` as given."""
    values: dict[str, Any] = {}
    digest = fields.get("digest") or uuid.uuid4().hex * 2
    for field in msgspec.inspect.type_info(event).fields:  # type: ignore[attr-defined]
        name = field.name
        if name == "model":
            values[name] = model
        elif name == "inference_id":
            values[name] = answer(fresh("inference"))
        elif name == "digest":
            values[name] = digest
        elif name == "path":
            values[name] = f"{'bases' if event.__name__.startswith('Base') else 'adapters'}/{digest}"
        elif name in _IDS:
            values[name] = fresh(name.removesuffix("_id"))
        elif name in _FIXED:
            values[name] = _FIXED[name]
        elif field.required:
            values[name] = _BY_TYPE[type(field.type).__name__]
    return event(**{**values, **fields})
