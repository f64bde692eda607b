"""What the demo's acts share: settings, plan, the clock, and how the story is told."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from deploy.cli.output import PlainConsole
from deploy.demo.questions import Plan
from deploy.settings import Settings
from deploy.shown import readable

MODEL = "support"


class DemoError(RuntimeError):
    """The plot did not come true in time; the message says which part and where to look."""


@dataclass
class Stage:
    """What the acts share."""

    settings: Settings
    plan: Plan
    console: PlainConsole
    began: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)
    shift_ms: int = 0
    asked: int = 0  # of the plan's drifted questions

    def say(self, text: str, style: str = "") -> None:
        at = time.monotonic() - self.began
        self.console.print(Text.assemble((f"{at:5.0f} s", "dim"), "  ", (readable(text), style)))

    def bar(self) -> Progress:
        columns = [TextColumn("         {task.description}", markup=False), BarColumn(30),
                   TextColumn("{task.fields[note]}", markup=False),
                   TimeElapsedColumn(), TimeRemainingColumn()]  # fmt: skip
        return Progress(*columns, console=self.console, disable=not self.console.is_terminal, transient=True)
