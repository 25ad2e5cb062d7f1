"""How much the weights have grown since a moment in training."""

from torch import nn


class Growth:
    """The norm of every weight of two or more axes, now and then.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = _norms(model)

    def so_far(self) -> dict[str, float]:
        """Norm now over norm then, by name of the module; only weights that were not 0.

        Returns:
            The ratios.
        """
        now = _norms(self._model)
        return {n: now[n] / before for n, before in self._before.items() if before > 0 and n in now}


def _norms(model: nn.Module) -> dict[str, float]:
    found = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.ndim > 1 and not nn.parameter.is_lazy(weight):
            found[name] = float(weight.detach().norm())
    return found
