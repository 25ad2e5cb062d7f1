"""What the commands that run experiments have in common: folder, parts, interruption, files."""

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Self

from bnkit.cli.console import Language, language, out
from bnkit.cli.display import Display
from bnkit.cli.leaving_text import leaving_text
from bnkit.cli.repairs_text import repairs_text

if TYPE_CHECKING:
    from bnkit.lab.progress import Progress
    from bnkit.lab.record import Results
    from bnkit.lab.store import Parts

WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "page": "Page",
        "figures": "Figures",
        "networks": "Networks",
        "numbers": "Numbers",
        "reused": "{n} finished parts of an earlier run were taken over (--fresh runs them again).",
    },
    "zh": {
        "page": "页面",
        "figures": "图片",
        "networks": "网络",
        "numbers": "数据",
        "reused": "沿用了上次运行已完成的 {n} 个部分（--fresh 可重新运行）。",
    },
}


class Interrupts:
    """Remembers Ctrl-C inside: a library that catches KeyboardInterrupt cannot make it unseen.

    Where another handler than Python's own is set, or in another thread, nothing is changed.
    """

    def __init__(self) -> None:
        self.seen = False
        self._watching = False

    def __enter__(self) -> Self:
        mine = threading.current_thread() is threading.main_thread()
        if mine and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)
            self._watching = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._watching:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        signal.default_int_handler(number, frame)


@dataclass(frozen=True, kw_only=True)
class Session:
    """The options that every experiment command takes.

    Attributes:
        out: Folder of the results.
        fresh: Do not take over finished parts.
        quiet: Print nothing but errors.
        lang: Language of what is printed; None takes that of the locale.
    """

    out: Path
    fresh: bool
    quiet: bool
    lang: Language | None

    def run(
        self,
        stages: tuple[str, ...],
        experiment: "Callable[[], Callable[[Parts, Progress], Results]]",
    ) -> None:
        """Check the folder, run the experiment, write its files, say where they are.

        Args:
            stages: Names of the stages that the experiment reports.
            experiment: Imports what is heavy and returns the function that runs it.

        Raises:
            KeyboardInterrupt: The user stopped it; the message says what is kept.
        """
        from bnkit.lab.store import Parts, prepare_folder

        lang = language(self.lang)
        prepare_folder(self.out)
        parts = Parts(prepare_folder(self.out / "parts"), fresh=self.fresh)
        interrupts = Interrupts()
        try:
            with interrupts, Display(("load", *stages, "write"), lang, quiet=self.quiet) as display:
                with display.stage("load"):
                    run = experiment()
                results = run(parts, display)
                with display.stage("write"):
                    figures = _write(results, self.out)
        except (KeyboardInterrupt, Exception) as problem:
            if isinstance(problem, KeyboardInterrupt) or interrupts.seen:
                raise KeyboardInterrupt(self._what_is_kept()) from None
            raise
        if interrupts.seen:
            raise KeyboardInterrupt(self._what_is_kept())
        if not self.quiet:
            self._tell(results, figures, parts, lang)

    def _what_is_kept(self) -> str:
        folder = self.out / "parts"
        kept = len(list(folder.glob("*.json")))
        again = "Run the same command" + (" without --fresh" if self.fresh else "")
        return f"Stopped. Finished parts ({kept}) are kept in {folder}. {again} to continue."

    def _tell(
        self, results: "Results", figures: list[Path], parts: "Parts", lang: Language
    ) -> None:
        words, console = WORDS[lang], out()
        for finding in results.findings:
            console.print(f"* {getattr(finding.text, lang)}")
            if finding.id == "doctor" and results.repairs is not None:
                console.print(repairs_text(results.repairs, lang))
            if finding.id == "leaving" and results.leaving is not None:
                console.print(leaving_text(results.leaving, lang))
        console.print()
        if parts.reused:
            console.print(words["reused"].format(n=parts.reused))
        console.print(f"{words['page']}: {self.out / 'report.html'}")
        console.print(f"{words['figures']}: {', '.join(str(path) for path in figures)}")
        files = () if results.leaving is None else results.leaving.export.files
        networks = [str(self.out / file.file) for file in files if file.file is not None]
        if networks:
            console.print(f"{words['networks']}: {', '.join(networks)}")
        console.print(f"{words['numbers']}: {self.out / 'results.json'}")


def _write(results: "Results", folder: Path) -> list[Path]:
    from bnkit.core.errors import OutputError
    from bnkit.lab.store import write_json
    from bnkit.report import write_page
    from bnkit.viz import save_figures

    document = results.to_dict()
    complete: list[str] = []
    try:
        write_json(document, folder / "results.json")
        complete.append("results.json")
        write_page(document, folder / "report.html")
        complete.append("report.html")
        return save_figures(document, folder)
    except OutputError as error:
        msg = f"{error} Files complete before: {', '.join(complete) or 'none'}."
        raise OutputError(msg) from error
