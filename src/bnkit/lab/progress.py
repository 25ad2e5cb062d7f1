"""How long work tells its caller how far it is."""

from typing import Protocol


class Progress(Protocol):
    """Called often by a long experiment; it must be cheap and must not raise by itself.

    An implementation may raise `KeyboardInterrupt` to stop the work: nothing half-written stays.
    """

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Report that `done` of `total` units of `stage` are finished.

        Args:
            stage: Name of the part of the work, such as `"mofan"` or `"twins"`.
            done: Units finished so far, counting those that were found finished.
            total: Units in this stage.
            note: A few characters about the moment, free of natural language.
        """


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Report to nobody."""
