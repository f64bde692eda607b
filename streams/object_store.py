"""Where an object store lies and with which credentials: an address, and a file of KEY=VALUE lines.

Without a file the store's client looks for credentials where such clients do (the cloud's own metadata, its usual
environment and files).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from streams.key_values import KeyValueError, read_key_values

if TYPE_CHECKING:
    from pyarrow import fs

# Arguments of `pyarrow.fs.S3FileSystem`.
KNOWN = frozenset({"access_key", "secret_key", "session_token", "region", "endpoint_override", "scheme"})


class ObjectStoreError(ValueError):
    """The file of `artifacts_config` is missing or wrong; the message never shows a value."""


def read_config(path: str) -> dict[str, str]:
    """What the file says. Raises `ObjectStoreError`."""
    if not path:
        return {}
    try:
        found = read_key_values(Path(path).read_text(encoding="utf-8"), path, KNOWN)
    except KeyValueError as error:
        raise ObjectStoreError(str(error)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ObjectStoreError(f"artifacts_config = {path}: cannot be read ({type(error).__name__})") from None
    if ("access_key" in found) != ("secret_key" in found):
        raise ObjectStoreError(f"{path}: access_key and secret_key come together")
    return found


def open_object_store(root: str, config: str = "") -> tuple[fs.FileSystem, str]:
    """The file system of a URI (s3://, gs://) and the path within it. Raises `ObjectStoreError`."""
    from pyarrow import fs  # who only reads the settings need not have it

    options = read_config(config)
    if not options:
        opened: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(root)
        return opened
    if not root.startswith("s3://"):
        raise ObjectStoreError(f"{config}: these settings are for s3:// alone; gs:// has its own credentials file")
    path, _, query = root.removeprefix("s3://").partition("?")
    named = {name: value for name, value in parse_qsl(query) if name in KNOWN}
    return fs.S3FileSystem(**named | options), path.rstrip("/")
