"""The doctor as a callback of Lightning."""

from typing import Any

from bnkit.integrations.sinks import scalars, send


def doctor_callback(data: Any, *, every_n_epochs: int = 1, **options: Any) -> Any:
    """A Lightning callback that examines the module after validation and logs what it finds.

    The training goes on as it would without: the module and the generators are left as they are.

    Args:
        data: Batches, as for `bnkit.diagnose`; not a loader with persistent workers that the
            training itself reads, because it would be started again.
        every_n_epochs: How often.
        **options: Further arguments of `bnkit.diagnose`.

    Returns:
        A `lightning.pytorch.Callback`; its attribute `diagnosis` is the last one.
    """
    from lightning.pytorch import Callback  # pyright: ignore[reportMissingImports]

    from bnkit.doctor.diagnosing import diagnose

    class Doctor(Callback):
        diagnosis: Any = None

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.sanity_checking or trainer.current_epoch % every_n_epochs:
                return
            self.diagnosis = diagnose(pl_module, data, **options)
            for logger in trainer.loggers:
                send(scalars(self.diagnosis), logger, trainer.global_step)

    return Doctor()
