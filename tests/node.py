"""Node for tests of other people's clients: npm packages in the cache folder, or a skip that says what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from deploy.local.jars import cache_dir

INSTALL_TIMEOUT_S = 240


def packages(name: str, version: str) -> Path:
    """The folder whose `node_modules` holds the npm package NAME at VERSION, fetched once; skips where it cannot be."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program} on this machine")
    target = cache_dir() / f"npm-{name.replace('/', '-').lstrip('@')}-{version}"
    if not (target / "node_modules" / name).is_dir():
        _install(f"{name}@{version}", target)
    return target


def _install(wanted: str, target: Path) -> None:
    """Installs beside the target and renames when complete: an interrupted download is never taken for a whole one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f"{target.name}.partial-", dir=target.parent))
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(staging), wanted]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "npm error" in line.lower()]
            pytest.skip(f"npm cannot fetch {wanted}: {' '.join(said)[:200] or done.stderr[-200:]}")
        if not target.exists():
            staging.rename(target)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not fetch {wanted} within {INSTALL_TIMEOUT_S} s")
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def run(script: Path, installed: Path, given: str, *arguments: str, timeout_s: float = 60) -> str:
    """What the Node program `script` prints, with `given` on its standard input. Fails with its errors."""
    # A module is looked up beside the file that asks for it, so the program names its packages by this folder.
    env = {**os.environ, "NODE_PATH": str(installed / "node_modules")}
    done = subprocess.run(
        ["node", str(script), *arguments], input=given, capture_output=True, text=True, env=env, timeout=timeout_s,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
