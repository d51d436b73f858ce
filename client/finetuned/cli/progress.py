"""Jobs as they run: a progress bar for each with the curve of its loss, and a line above for what happens to it.

Usable by other programs: `JobDisplay` takes the events that `client.jobs.wait(..., on_event=...)` gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, final

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from finetuned.cli.curve import curve
from finetuned.cli.output import duration, err, metrics
from finetuned.values.events import (
    Checkpoint,
    EvaluationFinished,
    JobEvent,
    Notice,
    Severity,
    StateChanged,
)
from finetuned.values.events import Progress as JobProgress

PLAIN_LINES: Final = 10
"""Without a terminal there is no bar: about so many lines tell how far a job is."""
CURVE_WIDTH: Final = 60
CURVE_HEIGHT: Final = 6
MAX_POINTS: Final = 10_000
"""Of a curve: as many as a server keeps events."""


@final
class _Bars(Progress):
    """Progress bars with curves below them; `get_renderables` is where rich asks for more to show."""

    def __init__(self, *columns: TextColumn | BarColumn | MofNCompleteColumn, console: Console) -> None:
        self.curves: dict[str, list[tuple[int, float]]] = {}
        super().__init__(*columns, console=console, disable=not console.is_terminal)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for label, points in self.curves.items():
            lines = curve(points, width=CURVE_WIDTH, height=CURVE_HEIGHT)
            if lines:
                title = f"loss of {label}\n" if len(self.curves) > 1 else "loss\n"
                yield Text(title + "\n".join(lines))


@final
class JobDisplay:
    """Shows any number of jobs; a context manager.

        with JobDisplay() as display:
            client.jobs.wait(job.name, on_event=display.job("redact"))

    Args:
        console: where to show them; standard error by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or err()
        self._bars = _Bars(
            TextColumn("[bold]{task.description}[/bold]"),
            TextColumn("{task.fields[phase]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
        )

    def job(self, label: str) -> Callable[[JobEvent], None]:
        """A bar for one more job; what is returned takes the job's events."""
        return _JobBar(self._bars, self._console, label).show

    def __enter__(self) -> JobDisplay:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bars.stop()


@final
class _JobBar:
    def __init__(self, bars: _Bars, console: Console, label: str) -> None:
        self._bars = bars
        self._console = console
        self._label = escape(label)
        self._task: TaskID = bars.add_task(self._label, total=None, phase="", figures="")
        self._told = ("", 0)
        self._points = bars.curves.setdefault(label, [])

    def show(self, event: JobEvent) -> None:
        match event.body:
            case JobProgress() as progress:
                self._advance(progress)
            case StateChanged(state=state, reason=reason, attempt=attempt):
                extra = f" ({reason.value.lower()}, attempt {attempt})" if reason != "UNKNOWN" else ""
                self._say(f"{state.value.lower()}{extra}")
                self._bars.update(self._task, phase=state.value.lower())
            case EvaluationFinished(subject=subject, step=step, metrics=found):
                at = f" at step {step}" if step else ""
                self._say(f"{subject}{at}: {metrics(found)}")
            case Checkpoint(step=step, eval_loss=loss, best=best):
                known = f", held-out loss {loss:.4f}" if loss is not None else ""
                self._say(f"checkpoint at step {step}{known}{', the best so far' if best else ''}")
            case Notice(severity=severity, text=text):
                color = "yellow" if severity is Severity.WARNING else "default"
                self._say(f"[{color}]{escape(text)}[/{color}]")
            case None:
                pass  # a kind of event that this client does not know

    def _advance(self, progress: JobProgress) -> None:
        figures = self._figures(progress)
        self._bars.update(
            self._task,
            phase=progress.phase,
            completed=progress.step,
            total=progress.total_steps or None,
            figures=figures,
        )
        if progress.phase == "training" and math.isfinite(progress.loss):
            self._points.append((progress.step, progress.loss))
            del self._points[:-MAX_POINTS]
        tenths = PLAIN_LINES * progress.step // max(progress.total_steps, 1)
        told = progress.phase, tenths
        if not self._console.is_terminal and told != self._told:
            self._told = told
            steps = f" {progress.step}/{progress.total_steps}" if progress.total_steps else ""
            self._say(f"{progress.phase}{steps}{'  ' if figures else ''}{figures}")

    def _figures(self, progress: JobProgress) -> str:
        parts = [
            f"loss {progress.loss:.4f}" if progress.loss else "",
            f"{progress.tokens_per_second:.0f} tokens/s" if progress.tokens_per_second else "",
            f"ETA {duration(progress.eta_seconds)}" if progress.eta_seconds is not None else "",
        ]
        return "  ".join(part for part in parts if part)

    def _say(self, text: str) -> None:
        # One line each in a log; a terminal may wrap them.
        self._console.print(f"[dim]{self._label}[/dim]  {text}", soft_wrap=not self._console.is_terminal)
