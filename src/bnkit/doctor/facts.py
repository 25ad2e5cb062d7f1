"""Facts of a whole module and of an optimizer."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A module, seen from outside.

    Attributes:
        training: Mode of the root.
        weights_trained: Whether anything says that the weights have been trained.
        thawed: Frozen layers that went back to training mode when `.train()` was called on a copy.
        hidden: Attributes that hold batch norms outside of the registry of modules.
        frozen_parts: Submodules whose parameters are all frozen while a batch norm in them trains.
        parallel: "DistributedDataParallel", "DataParallel" or None.
        broadcasts: Whether DistributedDataParallel broadcasts buffers.
        built_in_forward: Classes of batch norms that were constructed during a forward pass.
        averaged: The model is a `torch.optim.swa_utils.AveragedModel`.
        averaged_steps: Its count of averaged models.
        quantization_aware: Names of batch norms inside modules of quantization-aware training.
        observing: Whether an observer of that training still adapts; None without any.
        per_sample_gradients: It is wrapped for gradients of each sample (DP-SGD), as by opacus.
        border_errors: Largest error of folding a batch norm into the convolution behind it.
    """

    training: bool
    weights_trained: bool | None = None
    thawed: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    frozen_parts: Mapping[str, tuple[str, ...]] | None = None
    parallel: str | None = None
    broadcasts: bool | None = None
    built_in_forward: tuple[str, ...] = ()
    averaged: bool = False
    averaged_steps: int = 0
    quantization_aware: tuple[str, ...] = ()
    observing: bool | None = None
    per_sample_gradients: bool = False
    border_errors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerFacts:
    """What an optimizer does to the parameters of batch norms.

    Attributes:
        decayed: Weight decay of the group that holds a layer's weight or bias, where not 0.
        absent: Layers with trainable parameters that are in no group.
        weight_decay: Weight decay of the weight of every module, by name of the module.
        private: It adds noise to the gradient of each sample (DP-SGD), as opacus' does.
    """

    decayed: Mapping[str, float]
    absent: tuple[str, ...]
    weight_decay: Mapping[str, float] = field(default_factory=dict)
    private: bool = False
