"""Names of models, bases, shards and files: checked before they become paths, keys or SQL.

`Name` is the type of such a field in an event, so a record with another name does not decode. `is_name` and
`is_file_name` are the same rules for what comes by another way: settings, the command line, paths in the store.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

NAME = "[a-z0-9][a-z0-9._-]{0,62}"
WANTED = "1 to 63 of a-z, 0-9, '.', '_', '-', the first a letter or a digit"
# Without the look-ahead `$` would let a line break pass at the end.
Name = Annotated[str, msgspec.Meta(pattern=f"^{NAME}$(?!\\n)")]
_name = re.compile(NAME)
# Longer, as digests and what is made of them have 64 characters and more; upper case, as in README.md.
_file_name = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def is_name(text: str) -> bool:
    """Whether `text` can name a model, a base or a shard."""
    return _name.fullmatch(text) is not None


def is_file_name(text: str) -> bool:
    """Whether `text` can be one part of a path in the artifact store."""
    return _file_name.fullmatch(text) is not None
