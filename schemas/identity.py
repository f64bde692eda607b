"""Identities: what each thing is called, and why a replay calls it the same.

Ids of things that happened once are random and signed (`InferenceIds`); ids of things that are computed are
hashes of what they were computed from, so that doing it again names the same thing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import time
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

_PREFIX = "chatcmpl-"
_MAC_HEX = 12


def uuid7_hex(now_ms: int | None = None) -> str:
    """A UUID version 7 (RFC 9562, 5.7) as 32 hex digits: 48 bits of Unix time in ms, then random bits."""
    stamp = int(time.time() * 1000) if now_ms is None else now_ms
    value = (stamp << 80) | int.from_bytes(os.urandom(10), "big")
    value = (value & ~(0xF << 76 | 0x3 << 62)) | (0x7 << 76 | 0x2 << 62)  # version, variant
    return f"{value:032x}"


class InferenceIds:
    """Issues and recognises inference ids: `chatcmpl-` + UUIDv7 + a truncated HMAC-SHA256.

    Any gateway that holds the same secret recognises an id without a look-up, however old it is.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 16:
            raise ValueError("the identity secret is shorter than 16 bytes")
        self._secret = secret

    def _mac(self, body: str) -> str:
        return hmac.new(self._secret, body.encode(), hashlib.sha256).hexdigest()[:_MAC_HEX]

    def issue(self) -> str:
        body = uuid7_hex()
        return f"{_PREFIX}{body}{self._mac(body)}"

    def genuine(self, inference_id: str) -> bool:
        rest = inference_id.removeprefix(_PREFIX)
        if not inference_id.startswith(_PREFIX) or len(rest) != 32 + _MAC_HEX or not rest.isascii():
            return False
        return hmac.compare_digest(self._mac(rest[:32]), rest[32:])


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_hash(*parts: Any) -> str:
    """sha256 of the canonical JSON of `parts`, as 32 hex digits."""
    return hashlib.sha256(_canonical.encode(parts).encode()).hexdigest()[:32]


def normalise(text: str) -> str:
    """Text as identities see it: NFKC, case folded, white space collapsed."""
    text = text.lower() if text.isascii() else unicodedata.normalize("NFKC", without_heaps(text)).casefold()
    return " ".join(text.split())


def without_heaps(text: str) -> str:
    """The first 30 of combining marks that stand on one letter (Unicode's Stream-Safe Text Format, UAX #15).

    Normalisation sorts the marks of a letter, which costs the square of their number.
    """
    return _heaps().sub("", text)


@lru_cache(maxsize=1)
def _heaps() -> re.Pattern[str]:
    marks = "".join(mark for mark in map(chr, range(0x300, 0x1F000)) if unicodedata.combining(mark))
    return re.compile(f"(?<=[{marks}]{{30}})[{marks}]+")


def subject_of_request(
    safety_identifier: str | None, user: str | None, conversation_id: str | None, inference_id: str
) -> str:
    """Whose words a request carries: the first of these that is given."""
    return safety_identifier or user or conversation_id or inference_id


def subject_of_prompt(prompt: str) -> str:
    """Whose words a record carries that names no subject: a hash of its normalised prompt."""
    return "prompt-" + content_hash(normalise(prompt))


def subject_of_record(turns: Sequence[Any], prompt: str = "") -> str:
    """`subject_of_prompt` of what a record asks, as it was said: before any repair or mask.

    The one rule for import, preparation and erasure: `turns` (with `role` and `content`) up to the last of the user's,
    else `prompt`.
    """
    asked = [turn.content for turn in turns if turn.role == "user"][-1:] or [prompt]
    return subject_of_prompt(asked[0])


def partition_of(value: str, partitions: int) -> int:
    """The partition a subject's records go to: crc32, the same in every process and every year."""
    return zlib.crc32(value.encode()) % partitions


def subject_hash(secret: bytes, subject_id: str) -> str:
    """What stands for a person who was forgotten: recognises them, and tells nobody without the secret who it is."""
    return hmac.new(secret, f"erased\0{subject_id}".encode(), hashlib.sha256).hexdigest()[:32]


def erasure_id(hashed: str) -> str:
    """The erasure of one subject: asking twice is one erasure."""
    return "erasure-" + content_hash(hashed)


def split_of(subject_id: str, salt: str, validation_share: float, test_share: float) -> str:
    """train | validation | test by hash(salt, subject): never changes while the salt stands."""
    digest = hashlib.sha256(f"{salt}\0{subject_id}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < test_share:
        return "test"
    return "validation" if position < test_share + validation_share else "train"


def shard_id(
    topic: str, partition: int, first_offset: int, last_offset: int, model: str, rules_version: str
) -> str:
    return "shard-" + content_hash(topic, partition, first_offset, last_offset, model, rules_version)


def job_id(
    model: str,
    base_digest: str,
    parent_digest: str,
    data_digests: Sequence[str],
    method: str,
    recipe: Mapping[str, float],
    because: str,
) -> str:
    """Hash of a job's inputs and of what asked for it (`because`: a drift's, a command's id, or `initial`)."""
    inputs = (model, base_digest, parent_digest, list(data_digests), method)
    return "job-" + content_hash(*inputs, dict(recipe), because)


def drift_id(model: str, version: int, metric: str, first_partition: int, first_offset: int) -> str:
    return "drift-" + content_hash(model, version, metric, first_partition, first_offset)


def record_id(inference_id: str, kind: str) -> str:
    """The training record that feedback on one answer makes: a later correction replaces the earlier."""
    return f"{kind}-{inference_id}"
