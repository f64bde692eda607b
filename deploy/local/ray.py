"""A private Ray for this machine, started inside the process that calls `start_ray` and ended with it.

Reads nothing; writes DIR/secrets/ray-token (0600) and Ray's own files under DIR/ray, or under a short folder of the
system's temporary directory where DIR is too long for a Unix socket's name.

What was seen (Ray 2.60, Linux, psutil over every process of it): given no address, or 127.0.0.1, `ray.init` takes
the machine's outer address, and the GCS, raylet, object manager, every worker and the driver listen on `::`, the two
dashboard processes on 0.0.0.0. With RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, Ray's own switch for machines that are no
cluster (it does this by itself on macOS and Windows), each of them listens on 127.0.0.1 only. Token authentication
stays on as well: the loopback is open to every user of the machine. After a kill -9 of the process that called
`ray.init`, its daemons ended by themselves within 4 s; they carry its environment, so a supervisor finds them too.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from deploy.local.errors import LocalPartError
from deploy.local.folders import own_folder
from deploy.local.secret_files import make_secret

NAMESPACE = "tuneloop"
OBJECT_STORE_BYTES = 200 * 2**20
# A Unix socket's name has 107 bytes; Ray appends "/session_<date>_<time>_<pid>/sockets/plasma_store", up to 66.
LONGEST_TEMP_DIR = 107 - 66
KEPT_SESSIONS = 2


def ray_environment(data_dir: Path) -> dict[str, str]:
    """What has to stand in the environment before `ray` is imported; creates the token where there is none."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(_token_file(data_dir)),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Its workers answer people: left at 15 they would wait for the training that runs beside them.
        "RAY_worker_niceness": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def start_ray(data_dir: Path, num_cpus: int | None = None) -> None:
    """Starts Ray for this process alone: loopback, token, no dashboard, no usage statistics, a 200 MB object store.

    `num_cpus` is what Ray believes to have (None: what the machine has). Takes 10 to 20 s. Call it before anything
    imports `ray`, or pass `ray_environment` to the process; else LocalPartError, for Ray would listen everywhere.
    """
    needed = ray_environment(data_dir)
    if "ray" in sys.modules and any(os.environ.get(name) != value for name, value in needed.items()):
        raise LocalPartError(
            "ray was imported before start_ray, so it would listen on all interfaces: "
            "import it later, or start this process with the environment of ray_environment()."
        )
    os.environ.update(needed)
    temp_dir = short_temp_dir(data_dir)
    _forget_old_sessions(temp_dir)
    import ray
    from ray.job_config import JobConfig

    job = JobConfig()
    job._py_driver_sys_path = _NoFolders()
    ray.init(
        job_config=job,
        address="local",  # never a cluster that RAY_ADDRESS may name
        namespace=NAMESPACE,
        num_cpus=num_cpus,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        logging_level=logging.WARNING,
        _temp_dir=str(temp_dir),
    )


class _NoFolders(list[str]):
    """The driver's folders that Ray puts before everything in its workers' sys.path: none.

    It would add the current folder (Ray 2.60, `_private/worker.py`), and import what somebody left there.
    """

    def extend(self, folders: Iterable[str]) -> None:
        pass


def short_temp_dir(data_dir: Path) -> Path:
    """DIR/ray when sockets can be named under it, else a folder of our own with a short name, the same each time."""
    within = data_dir.absolute() / "ray"
    if len(os.fsencode(within)) <= LONGEST_TEMP_DIR:
        own_folder(data_dir.absolute())  # Ray opens its own folder to everybody; what is around it stays shut
        within.mkdir(exist_ok=True, mode=0o700)
        return within
    digest = hashlib.sha256(os.fsencode(within)).hexdigest()[:8]
    for base in dict.fromkeys((tempfile.gettempdir(), "/tmp")):
        short = Path(base) / f"tuneloop-{os.getuid()}-{digest}"
        if len(os.fsencode(short)) + len("/r") <= LONGEST_TEMP_DIR:
            ray_dir = own_folder(short) / "r"  # likewise
            ray_dir.mkdir(exist_ok=True, mode=0o700)
            return ray_dir
    raise LocalPartError(f"{data_dir} is too long a path for Ray's sockets: choose one of under 36 characters.")


def _token_file(data_dir: Path) -> Path:
    own_folder(data_dir.absolute())
    path = data_dir.absolute() / "secrets" / "ray-token"
    make_secret(path)
    return path


def _forget_old_sessions(temp_dir: Path) -> None:
    """Ray keeps a folder of logs for every start, for ever: the newest two are enough."""
    sessions = sorted(path for path in temp_dir.glob("session_2*") if not path.is_symlink())
    for session in sessions[:-KEPT_SESSIONS]:
        shutil.rmtree(session, ignore_errors=True)
