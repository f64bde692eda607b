"""Ray's folder, token and environment, without starting Ray."""

from __future__ import annotations

import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from deploy.local.ray import LONGEST_TEMP_DIR, ray_environment, short_temp_dir

ROOT = Path(__file__).parents[2]


def test_the_token_is_secret_and_stays(tmp_path) -> None:
    first, second = ray_environment(tmp_path), ray_environment(tmp_path)
    token = Path(first["RAY_AUTH_TOKEN_PATH"])
    assert first == second and len(token.read_text()) == 64
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700


def test_a_long_data_directory_gets_a_short_folder_in_a_private_one(tmp_path) -> None:
    short = short_temp_dir(tmp_path / ("x" * 80))
    assert len(str(short)) <= LONGEST_TEMP_DIR
    assert stat.S_IMODE(short.parent.stat().st_mode) == 0o700
    short.chmod(0o777)  # as Ray does with its own folder
    assert short == short_temp_dir(tmp_path / ("x" * 80)), "a second start takes the same folder again"
    short.rmdir()
    short.parent.rmdir()


def test_the_folder_that_ray_opened_is_taken_again_within_one_that_is_shut() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        first = short_temp_dir(Path(folder) / "d")
        first.chmod(0o777)
        assert short_temp_dir(Path(folder) / "d") == first == Path(folder) / "d" / "ray"
        assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700


def test_ray_imported_too_early_is_refused(tmp_path) -> None:
    code = (
        "import sys, types, pathlib; sys.modules['ray'] = types.ModuleType('ray')\n"
        "from deploy.local.ray import start_ray; start_ray(pathlib.Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "it would listen on all interfaces" in done.stderr
