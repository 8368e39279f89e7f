"""Progress of long loops: a bar on a terminal, silence elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """A function ``(done, note)`` that moves the bar.

    Example:
        >>> with progress("training", 10) as tell:
        ...     tell(3, "loss 0.2")
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, note: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console, transient=True) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")
        yield lambda done, note: bar.update(task, completed=done, note=note)
