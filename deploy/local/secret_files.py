"""Files that hold a secret: made once, whole or not at all, readable by their owner alone."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from filelock import FileLock

from deploy.local.folders import own_folder, private_file

SECRET_HEX_BYTES = 32


def make_secret(path: Path) -> str:
    """The secret in this file; 64 random hex digits are written there where it is missing."""
    if not path.exists():
        write_secret(path, secrets.token_hex(SECRET_HEX_BYTES))
    return path.read_text(encoding="utf-8").strip()


def write_secret(path: Path, text: str) -> None:
    """Write the file (0600) unless it is there; whoever reads it meanwhile finds all of it or nothing."""
    if path.exists():
        return
    own_folder(path.parent)
    with FileLock(path.with_name(f".{path.name}.lock"), mode=0o600):
        if path.exists():
            return
        staged = path.with_name(f".{path.name}.{os.getpid()}.new")
        staged.unlink(missing_ok=True)
        with os.fdopen(private_file(staged), "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        staged.replace(path)
