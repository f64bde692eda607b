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
from typing import Any, NamedTuple

SECRET_BYTES = 32
# An answer's id: what it is in OpenAI's words, a UUIDv7, which key signed it, whose it is, and the signature.
PREFIXES = ("chatcmpl-", "cmpl-", "resp_")
UUID_HEX, KEY_HEX, TENANT_HEX, MAC_HEX = 32, 4, 8, 16
_UUID7 = f"[0-9a-f]{{12}}7[0-9a-f]{{3}}[89ab][0-9a-f]{{{UUID_HEX - 17}}}"
ANSWER_ID = f"(?:{'|'.join(PREFIXES)}){_UUID7}[0-9a-f]{{{KEY_HEX + TENANT_HEX + MAC_HEX}}}"
_ANSWER_ID = re.compile(ANSWER_ID)


def uuid7_hex(now_ms: int | None = None) -> str:
    """A UUID version 7 (RFC 9562, 5.7) as 32 hex digits: 48 bits of Unix time in ms, then random bits."""
    stamp = int(time.time() * 1000) if now_ms is None else now_ms
    value = (stamp << 80) | int.from_bytes(os.urandom(10), "big")
    value = (value & ~(0xF << 76 | 0x3 << 62)) | (0x7 << 76 | 0x2 << 62)  # version, variant
    return f"{value:032x}"


def derive_key(secret: bytes, purpose: str) -> bytes:
    """A key of 32 bytes for one purpose alone: HMAC-SHA256 of its name under the identity secret."""
    return hmac.digest(secret, f"tuneloop/{purpose}".encode(), "sha256")


def key_id(secret: bytes) -> str:
    """Which secret this is, in 4 hex digits that tell nothing of it."""
    return derive_key(secret, "key id").hex()[:KEY_HEX]


class AnswerId(NamedTuple):
    """An answer's id, taken apart. `tenant` is 0 until there are keys for the gateway."""

    prefix: str
    uuid: str
    key_id: str
    tenant: int
    mac: str

    @property
    def issued_ms(self) -> int:
        """When it was issued, in Unix time."""
        return int(self.uuid[:12], 16)


def parse_answer_id(text: str) -> AnswerId | None:
    """The parts of an answer's id, None for anything else. Says nothing of who made it: `InferenceIds.genuine` does."""
    if _ANSWER_ID.fullmatch(text) is None:
        return None
    start = text.index("-" if "-" in text else "_") + 1
    parts, place = [text[:start]], start
    for length in (UUID_HEX, KEY_HEX, TENANT_HEX, MAC_HEX):
        parts.append(text[place : place + length])
        place += length
    prefix, uuid, key, tenant, mac = parts
    return AnswerId(prefix, uuid, key, int(tenant, 16), mac)


class MadeUpIdError(ValueError):
    """An answer's id that was not issued here; the message names it."""


class InferenceIds:
    """Issues and recognises the ids of answers: prefix, UUIDv7, key id, tenant, and an HMAC-SHA256 cut to 64 bits.

    Whoever holds the same secret recognises an id without a look-up, however old it is. Raises ValueError for a secret
    of under 32 bytes.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) < SECRET_BYTES:
            raise ValueError(f"the identity secret is shorter than {SECRET_BYTES} bytes")
        self._key, self._key_id = derive_key(secret, "answer ids"), key_id(secret)

    def _mac(self, signed: str) -> str:
        return hmac.digest(self._key, signed.encode(), "sha256").hex()[:MAC_HEX]

    def issue(self, prefix: str = "chatcmpl-", tenant: int = 0) -> str:
        """A new id. Raises ValueError for an unknown prefix or a tenant that has no room."""
        return self.sign(uuid7_hex(), prefix, tenant)

    def sign(self, uuid: str, prefix: str = "chatcmpl-", tenant: int = 0) -> str:
        """The id of a given UUIDv7 (32 hex digits). Raises ValueError as `issue` does, and for any other uuid."""
        signed = f"{prefix}{uuid}{self._key_id}{tenant:0{TENANT_HEX}x}"
        issued = f"{signed}{self._mac(signed)}"
        if parse_answer_id(issued) is None:
            raise ValueError(f"no id is made of prefix {prefix!r}, uuid {uuid!r} and tenant {tenant}")
        return issued

    def check(self, event: Any) -> None:
        """Raises `MadeUpIdError` for an answer, or an opinion on one, whose id was not issued under this secret."""
        if not self.genuine(event.inference_id):
            raise MadeUpIdError(f"inference_id {event.inference_id[:80]!r} was not issued here")

    def genuine(self, inference_id: str) -> bool:
        """Whether it was issued under this secret."""
        if not isinstance(inference_id, str) or _ANSWER_ID.fullmatch(inference_id) is None:
            return False
        return hmac.compare_digest(self._mac(inference_id[:-MAC_HEX]), inference_id[-MAC_HEX:])


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
    return hmac.digest(derive_key(secret, "erasures"), subject_id.encode(), "sha256").hex()[:32]


def erasure_id(hashed: str) -> str:
    """The erasure of one subject: asking twice is one erasure."""
    return "erasure-" + content_hash(hashed)


def split_key(secret: bytes) -> bytes:
    """What `split_of` takes: without the identity secret nobody can choose an id that falls into a hold-out."""
    return derive_key(secret, "split")


def split_of(subject_id: str, key: bytes, validation_share: float, test_share: float) -> str:
    """train | validation | test by HMAC(key, subject): never changes while the key stands."""
    digest = hmac.digest(key, subject_id.encode(), "sha256")
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < test_share:
        return "test"
    return "validation" if position < test_share + validation_share else "train"


def subject_key(key: bytes, model: str, subject_id: str) -> str:
    """What stands for a subject of a model where its name must not: recognised by whoever has `split_key` alone."""
    return "subject-" + hmac.digest(key, f"shared\0{model}\0{subject_id}".encode(), "sha256").hex()[:32]


def question_of(last_turn: str) -> str:
    """The question that a last user turn asks, in 16 hex digits, whatever stands before it.

    Its near copies are given the same by `streams.prepare.questions`.
    """
    return content_hash("question", normalise(last_turn))[:16]


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
