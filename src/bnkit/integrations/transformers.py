"""The doctor as a callback of the Trainer of transformers."""

from typing import Any

from bnkit.integrations.sinks import scalars, send


def doctor_callback(data: Any, sink: Any = None, **options: Any) -> Any:
    """A Trainer callback that examines the model at each evaluation.

    Args:
        data: Batches, as for `bnkit.diagnose`.
        sink: A tracker for `bnkit.integrations.sinks.send`, or None.
        **options: Further arguments of `bnkit.diagnose`.

    Returns:
        A `transformers.TrainerCallback`; its attribute `diagnosis` is the last one.
    """
    from transformers import TrainerCallback  # pyright: ignore[reportMissingImports]

    from bnkit.doctor.diagnosing import diagnose

    class Doctor(TrainerCallback):
        diagnosis: Any = None

        def on_evaluate(
            self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
        ) -> None:
            del args, control, kwargs
            self.diagnosis = diagnose(model, data, **options)
            if sink is not None:
                send(scalars(self.diagnosis), sink, state.global_step)

    return Doctor()
