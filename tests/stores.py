"""Artifact stores for tests: with a key, so that what needs a proof can be written and read."""

from __future__ import annotations

from pathlib import Path

from schemas.identity import derive_key
from streams.artifacts import ArtifactStore
from tests.ids import SECRET

PROOF_KEY = derive_key(SECRET, "artifacts")


def store_at(folder: Path | str) -> ArtifactStore:
    return ArtifactStore(str(folder), proof_key=PROOF_KEY)


def secret_file(folder: Path) -> Path:
    """A file that holds the secret of these stores."""
    path = folder / "identity"
    path.write_bytes(SECRET)
    return path
