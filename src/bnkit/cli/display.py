"""Live progress with the time left; one line per finished stage where there is no terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bnkit.cli.console import Language, err

TITLES: dict[Language, dict[str, str]] = {
    "en": {
        "load": "loading torch",
        "mofan": "Mofan's four networks",
        "ablation": "initialization x learning rate",
        "twins": "twin networks on digits",
        "doctor": "faults, found and mended",
        "leaving": "folded, timed, exported",
        "write": "page and figures",
        "compile": "compiling",
    },
    "zh": {
        "load": "加载 torch",
        "mofan": "莫烦的四个网络",
        "ablation": "初始化 x 学习率",
        "twins": "手写数字上的孪生网络",
        "doctor": "故障的诊断与修复",
        "leaving": "折叠、计时与导出",
        "write": "页面与图片",
        "compile": "编译",
    },
}


class Display:
    """Shows how far each stage is; a `bnkit.lab` progress callback."""

    def __init__(self, stages: tuple[str, ...], lang: Language, *, quiet: bool) -> None:
        """Prepare the display.

        Args:
            stages: Names of the stages, in order.
            lang: Language of the titles.
            quiet: Show nothing.
        """
        self._titles = TITLES[lang]
        self._stages = stages
        self._console = err()
        self._quiet = quiet
        self._live = _bars(self._console) if self._console.is_terminal and not quiet else None
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._finished: set[str] = set()

    def __enter__(self) -> "Display":
        if self._live is not None:
            self._live.start()
            for stage in self._stages:
                self._tasks[stage] = self._live.add_task(
                    self._titles[stage], total=1, start=False, note=""
                )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` units of `stage` are finished.

        Args:
            stage: One of the stages.
            done: Units finished.
            total: Units in all.
            note: Shown behind the bar.
        """
        first = stage not in self._started
        self._started.setdefault(stage, perf_counter())
        if self._live is not None:
            task = self._tasks[stage]
            if first:
                self._live.start_task(task)
            self._live.update(task, completed=done, total=total, note=note)
        elif done == total and not self._quiet and stage not in self._finished:
            self._finished.add(stage)
            seconds = perf_counter() - self._started[stage]
            self._console.print(f"{self._titles[stage]}: {seconds:.1f} s")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show a stage that cannot say how far it is.

        Args:
            name: One of the stages.

        Yields:
            None, while it runs.
        """
        self(name, 0, 1)
        yield
        self(name, 1, 1)


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )
