"""Whose folders these are: made for their owner alone, and checked before anything in them is trusted.

`keep_private` is the first call of every process: what it and its children write is their owner's, and no child imports
from the folder where somebody called it. The data directory carries the number of its layout in DIR/layout.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from deploy.local.errors import LocalPartError

log = logging.getLogger(__name__)
LAYOUT = 2
LAYOUT_FILE = "layout"
ROOT = Path(__file__).parents[2]


def keep_private() -> None:
    """Files for their owner alone, and PYTHONSAFEPATH for children; Java and Ray's workers inherit both."""
    os.umask(0o077)
    os.environ |= import_environment()


def import_environment() -> dict[str, str]:
    """The environment in which a child imports this project and what is installed, never the current folder.

    `python -m` puts that folder before everything, and so does an empty or relative part of PYTHONPATH.
    """
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    parts = dict.fromkeys([str(ROOT), *(part for part in given if os.path.isabs(part))])
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(parts)}


def own_folder(path: Path) -> Path:
    """The folder, made where it is missing, with its parents; afterwards nobody else can enter it.

    One of ours that others could read is closed, and the log says so. Raises LocalPartError where it is a link, belongs
    to somebody else, or others could write in it (what lies there may be theirs).
    """
    try:
        for missing in [*reversed(path.parents), path]:
            if not missing.exists():
                missing.mkdir(mode=0o700, exist_ok=True)
        # By descriptor: what is checked is what is closed.
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        why = "is a link" if path.is_symlink() else f"cannot be used as a folder ({error.strerror})"
        raise LocalPartError(f"{path} {why}: remove it, or name a folder of your own.") from error
    try:
        _close_to_others(path, folder)
    finally:
        os.close(folder)
    return path


def _close_to_others(path: Path, folder: int) -> None:
    found = os.fstat(folder)
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.getuid():
        raise LocalPartError(
            f"{path} belongs to somebody else (user {found.st_uid}): name a folder of your own, or one within it."
        )
    if mode & 0o022 and os.listdir(folder):
        raise LocalPartError(
            f"others may write in {path} (mode {mode:o}), so what lies there may be theirs: look through it and "
            f"`chmod 700 {path}`, or name another folder."
        )
    if mode & 0o077:
        os.fchmod(folder, 0o700)
        log.warning("%s was open to other users of this machine (mode %o); now it is closed to them", path, mode)


def data_folder(path: Path) -> Path:
    """The data directory: our own, and of this layout; made and marked where it is missing. Raises LocalPartError."""
    check_layout(path)
    own_folder(path)
    if not (path / LAYOUT_FILE).exists():
        staged = path / f"{LAYOUT_FILE}.{os.getpid()}"
        with os.fdopen(private_file(staged), "w") as file:
            file.write(f"{LAYOUT}\n")
        staged.replace(path / LAYOUT_FILE)
    return path


def check_layout(path: Path) -> None:
    """Raises LocalPartError for a data directory of another layout, or for a folder that holds something else."""
    try:
        held = _held(path)
    except OSError as error:
        held = f"cannot be looked into ({error.strerror})"
    if not held:
        return
    raise LocalPartError(
        f"{path} {held} (this version needs layout {LAYOUT}): end what runs there (`tuneloop down`) and move it away, "
        "or name another with --data-dir (data_dir in the settings)."
    )


def _held(path: Path) -> str:
    """What is wrong with the data directory; "" where it is missing, empty, or of this layout."""
    # What another process is marking at this moment is empty as well.
    if not path.is_dir() or all(one.name.startswith(f"{LAYOUT_FILE}.") for one in path.iterdir()):
        return ""
    mark = path / LAYOUT_FILE
    if mark.is_symlink() or not mark.is_file():
        return "was made by an older version, or holds something else"
    with mark.open("rb") as file:
        number = file.read(20).decode(errors="replace").strip()
    return "" if number == str(LAYOUT) else f"has layout {number!r}"


def private_file(path: Path) -> int:
    """A descriptor of a new file that its owner alone may read. Raises OSError where anything is there, links too."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
