"""Ids of answers as the tests' gateway would have issued them: the same word, the same id."""

from __future__ import annotations

import hashlib
from pathlib import Path

from deploy.local.secret_files import write_secret
from schemas.identity import InferenceIds, key_id, split_key

SECRET = b"what the tests sign and hash with"
KEY_ID = key_id(SECRET)
IDS = InferenceIds(SECRET)
SPLIT_KEY = split_key(SECRET)


def keep(data_dir: Path) -> None:
    """Give a data directory the tests' secret, as `tuneloop up` would have made one of its own."""
    write_secret(data_dir / "secrets" / "identity", SECRET.decode())


def answer(word: object) -> str:
    """The id of the answer that a test calls by this word."""
    digits = hashlib.sha256(str(word).encode()).hexdigest()
    return IDS.sign(f"{digits[:12]}7{digits[13:16]}8{digits[17:32]}")
