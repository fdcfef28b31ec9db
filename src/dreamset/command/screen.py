"""What a person sees while DVC runs: the lines of the stages, and one bar for the whole run or a line a minute."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any, Final

from dreamset.command.times import duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dreamset.command.reproduce import Event

WIDTH: Final = 80  # columns, where the terminal is not narrower
_EVERY: Final = 60.0  # seconds between two lines where there is no terminal
_PRIOR: Final = 30.0  # seconds of stages that must have run before their pace counts as much as the estimates


def width() -> int:
    """Return the columns that lines are wrapped at."""
    return min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)


def wrapped(text: str, indent: str = "", further: str = "  ") -> str:
    """Return a sentence in lines of ``width``."""
    return textwrap.fill(
        text, width(), initial_indent=indent, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
    )


class Progress:
    """How far a run is, by the estimates of its stages and the pace of those that are done.

    Args:
        expected: seconds of each stage that will run, in order.
    """

    def __init__(self, expected: Mapping[str, float]) -> None:
        self.expected = dict(expected)
        self.done: dict[str, float] = {}
        self.stage, self.since = "", 0.0

    def start(self, stage: str, now: float) -> None:
        """Note that a stage starts."""
        self.stage, self.since = stage, now

    def end(self, stage: str, now: float) -> None:
        """Note that a stage is done."""
        self.done[stage], self.stage = now - self.since, ""

    def skip(self, stage: str) -> None:
        """Note that a stage was up to date; it says nothing of the pace."""
        self.expected.pop(stage, None)

    def pace(self, spent: float) -> float:
        """Return seconds per expected second, of the stages that are done; near 1 while they are short.

        The running stage counts too, from when its ``spent`` seconds are more than were expected.
        """
        known = [stage for stage in self.done if stage in self.expected]
        took, thought = (sum(times[stage] for stage in known) for times in (self.done, self.expected))
        if spent > (this := self.expected.get(self.stage, spent)):
            took, thought = took + spent, thought + this
        return (took + _PRIOR) / (thought + _PRIOR)

    def at(self, now: float) -> tuple[float, float]:
        """Return the share that is done, 0..1, and the seconds that are left."""
        before = sum(self.expected.get(stage, 0.0) for stage in self.done)
        this = self.expected.get(self.stage, 0.0)
        spent = now - self.since if self.stage else 0.0
        total = sum(self.expected.values()) or 1.0
        pace = self.pace(spent)
        # A stage that takes longer than thought stays almost done.
        part = min(spent / pace, 0.95 * this)
        left = (total - before - this) * pace + max(this * pace - spent, 0.05 * this * pace)
        return min(1.0, (before + part) / total), left


class Screen:
    """Prints what happens in a run.

    Args:
        expected: seconds of each stage that will run; empty: not known yet.
        terminal: whether somebody watches; None: whether standard output is a terminal.
    """

    def __init__(self, expected: Mapping[str, float], terminal: bool | None = None) -> None:
        self.progress = Progress(expected)
        self.terminal = sys.stdout.isatty() if terminal is None else terminal
        self.told = time.monotonic()
        self.count = len(expected)
        self.bar: Any = None
        if self.terminal:
            from tqdm import tqdm

            form = "{percentage:3.0f}% |{bar:20}| {desc}" if expected else "{desc}"
            self.bar = tqdm(total=1000, bar_format=form, leave=False, ncols=width(), file=sys.stdout, mininterval=0)

    def handle(self, event: Event) -> None:
        """Take an event of the run."""
        now = time.monotonic()
        if event.kind == "line":
            self.say(event.text)
        elif event.kind == "start":
            self.progress.start(event.text, now)
        elif event.kind == "end":
            self.progress.end(event.text, now)
        elif event.kind == "skip":
            self.progress.skip(event.text)
        self.show(now)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if not self.terminal:
            print(line, flush=True)
            return
        self.bar.clear()
        print(wrapped(line) if line.strip() else line, flush=True)
        self.bar.refresh()

    def tick(self) -> None:
        """Move the bar, or print a line if the last one is a minute old."""
        now = time.monotonic()
        if self.terminal:
            self.show(now)
        elif now - self.told >= _EVERY and self.progress.stage:
            self.told = now
            print(f"run: {self.words(now)}", flush=True)

    def words(self, now: float) -> str:
        """Return where the run is."""
        stage = self.progress.stage.replace("_after", "").replace("@", " ").replace("train_real", "train real")
        spent = duration(now - self.progress.since) if stage else ""
        if not self.count:
            return f"{stage}, {spent}" if stage else "DVC looks at what has changed"
        _, left = self.progress.at(now)
        where = f"{min(len(self.progress.done) + 1, self.count)} of {self.count}"
        return f"{stage or 'DVC'}, {where}, about {duration(left)} left"

    def show(self, now: float) -> None:
        """Draw the bar."""
        if self.bar is not None:
            share, _ = self.progress.at(now)
            self.bar.n = round(1000 * share)
            self.bar.set_description_str(self.words(now), refresh=True)

    def interrupted(self) -> None:
        """Remove what the terminal has echoed of an interrupt, with the bar."""
        if self.bar is not None:
            print("\r\x1b[K", end="", flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
