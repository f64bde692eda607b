"""`make demo`: parse, write the demo's settings file, play, print the figures as the last line."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from deploy import settings as settings_module
from deploy.cli.output import PlainConsole, fail
from deploy.demo.questions import SECRET, DataError, Plan, desk_plan, folder_plan
from deploy.demo.stage import MODEL, DemoError, Stage
from deploy.demo.story import play
from deploy.local.errors import LocalPartError
from deploy.local.folders import keep_private
from deploy.local.secret_files import write_secret
from deploy.local.supervise import SupervisorError
from schemas.policy import ModelPolicy


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description="The whole loop once round, on real parts.")
    parser.add_argument("--data", type=Path, help="folder with train.csv and test.csv (text,category)")
    parser.add_argument("--old", type=int, default=10, help="how many categories are known from the start")
    parser.add_argument("--new", type=int, default=10, help="how many appear later")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="where data, figures and the picture go")
    arguments = parser.parse_args()
    keep_private()
    console = PlainConsole(stderr=True)
    policy = ModelPolicy(max_tokens=24, max_prompt_tokens=256)
    try:
        plan = desk_plan(policy)
        if arguments.data:
            plan = folder_plan(arguments.data, arguments.old, arguments.new, policy)
        config = write_settings(plan, policy, arguments.out)
        stage = Stage(settings_module.load({"config": str(config)}), plan, console)
        result = play(stage, arguments.out)
    except (DataError, DemoError, LocalPartError, SupervisorError, settings_module.SettingsError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted; everything was stopped", 130)
    print(json.dumps(result))
    return 0


def write_settings(plan: Plan, policy: ModelPolicy, out_dir: Path) -> Path:
    """The settings file of this run: the product's own defaults, but for what so small a base can read and write."""
    out_dir.mkdir(parents=True, exist_ok=True)
    path, secret = out_dir / "tuneloop.toml", out_dir.absolute() / "identity"
    secret.unlink(missing_ok=True)
    write_secret(secret, SECRET)
    path.write_text(
        f"# Written by the demo for {plan.name}.\n"
        f'data_dir = "{(out_dir / "data").absolute()}"\n'
        f'identity_secret_file = "{secret}"\n'
        "serve_slots = 16\n\n"
        f"[models.{MODEL}]\n"
        'base = "pydoc-4m"\n'
        f"max_tokens = {policy.max_tokens}\n"
        f"max_prompt_tokens = {policy.max_prompt_tokens}\n"
    )
    return path


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Seen once in twenty runs: all was said and stopped, and the interpreter ended in a segmentation fault, threads
    # of the clients being there still.
    os._exit(code)
