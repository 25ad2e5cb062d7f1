"""What happened in a watched training loop, as plain numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """Counts over the watched part of a training loop.

    Attributes:
        steps: Optimizer steps.
        updates: Updates of the running statistics of each layer, by name.
        per_step: Largest number of updates between two optimizer steps, by name.
        forwards_with_grad: Largest number of updates between two steps that took part in the
            graph of gradients.
        in_backward: Updates while a backward pass ran: recomputed activations.
        without_grad: Updates while gradients were disabled.
        quiet_before: Updates without gradients before the first optimizer step of the watch.
        fresh: Layers that had never been updated when the watch began.
        eval_steps: Layers in eval mode at an optimizer step that had been in train mode at an
            earlier one.
        poisoned: Layers whose running statistics became NaN or infinite, with the step.
        fewest_values: Fewest values per channel in a training call, by name.
        differentiated_twice: Backward passes in train mode whose gradients were to be
            differentiated again (`create_graph=True`), by name.
        exchanged: Largest relative change of a parameter between the last update of statistics or
            optimizer step and a forward pass in eval mode; 0 when there was none.
        growth: Norm of each weight of two or more axes, now over at the beginning, by name of
            the module.
    """

    steps: int = 0
    updates: Mapping[str, int] = field(default_factory=dict)
    per_step: Mapping[str, int] = field(default_factory=dict)
    forwards_with_grad: Mapping[str, int] = field(default_factory=dict)
    in_backward: Mapping[str, int] = field(default_factory=dict)
    without_grad: Mapping[str, int] = field(default_factory=dict)
    quiet_before: Mapping[str, int] = field(default_factory=dict)
    fresh: frozenset[str] = frozenset()
    eval_steps: tuple[str, ...] = ()
    poisoned: Mapping[str, int] = field(default_factory=dict)
    fewest_values: Mapping[str, int] = field(default_factory=dict)
    differentiated_twice: Mapping[str, int] = field(default_factory=dict)
    exchanged: float = 0.0
    growth: Mapping[str, float] = field(default_factory=dict)
