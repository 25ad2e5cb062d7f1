"""Running statistics estimated again from batches, on a copy: what a mend would bring."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from bnkit.doctor.aside import device_of, set_aside
from bnkit.doctor.find import batch_norms
from bnkit.doctor.gather import Given
from bnkit.doctor.listen import Listener


def reestimated(model: nn.Module, given: Given) -> nn.Module:
    """A copy whose running statistics are those of the batches, pooled over all values.

    Every layer is measured while those below normalize with their batch, as in Algorithm 2 of
    Ioffe & Szegedy 2015; the variance divides by n - 1. A layer that no batch reaches keeps its
    statistics.

    Args:
        model: The model; it is not changed.
        given: The data, and how many batches of them.

    Returns:
        The copy, in the modes of the model.
    """
    batches = given.read(device_of(model))
    with set_aside(model) as copy:
        listener = Listener(copy)
        with listener.propagating():
            for batch in batches:
                listener.next_batch()
                batch.run(copy)
    result = deepcopy(model)
    layers: dict[str, Any] = batch_norms(result)
    with torch.no_grad():
        for name, heard in listener.heard.items():
            layer, whole = layers[name], heard.whole
            if whole is None or whole.count < 2 or layer.running_mean is None:
                continue
            layer.running_mean.copy_(whole.mean.reshape(layer.running_mean.shape))
            var = whole.var(correction=1).reshape(layer.running_var.shape)
            layer.running_var.copy_(var)
    return result
