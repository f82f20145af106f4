"""A progress bar with rate and remaining time, if rich is installed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(title: str, total: int | None, wanted: bool) -> Iterator[Callable[[int], None]]:
    """Show progress in examples.

    Args:
        title: text to the left of the bar.
        total: number of examples, None if unknown.
        wanted: False shows nothing.

    Yields:
        A function to call with the number of examples finished since the last call.
    """
    try:
        import rich.progress as bars
    except ImportError:
        wanted = False
    if not wanted:
        yield lambda count: None
        return
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[rate]}"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, transient=True) as bar:
        task = bar.add_task(title, total=total, rate="")

        def advance(count: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, advance=count, rate="" if speed is None else f"{speed:,.0f} examples/s")

        yield advance
