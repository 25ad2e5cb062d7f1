"""Whole training steps: forward, loss, backward, optimizer, with torch.nn and with bnkit."""

import torch
from torch import Tensor, nn

from bnkit.bench.gate import GateError
from bnkit.bench.networks import network
from bnkit.bench.quiet import Patience
from bnkit.bench.results import Step
from bnkit.bench.shapes import MemoryFormat
from bnkit.bench.timing import Plan, Work, interleaved

PROVIDERS = ("torch", "bnkit", "bnkit_fused")


def measure_steps(
    name: str,
    memory_format: MemoryFormat,
    plan: Plan,
    *,
    batch: tuple[int, ...] = (32, 3, 64, 64),
    patience: Patience | None = None,
) -> Step:
    """Time training steps of one network, all providers in turn, after comparing their gradients.

    Args:
        name: A key of `networks.NETWORKS`.
        memory_format: Of the input and the weights.
        plan: How long to measure.
        batch: Shape of the input.
        patience: How long to wait for other processes.

    Returns:
        The timings of torch, of bnkit as `replace_` gives it, and of the fused layers.

    Raises:
        GateError: A network with bnkit's layers learns something else.
    """
    layout = torch.channels_last if memory_format == "channels_last" else torch.contiguous_format
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(batch, generator=generator).contiguous(memory_format=layout)
    labels = torch.arange(batch[0]) % 10
    works = {}
    models = {p: network(name, p).to(memory_format=layout) for p in PROVIDERS}  # pyright: ignore
    _require_equal(name, models, (x, labels))
    for provider, model in models.items():
        works[provider] = Work(_step(model, x, labels))
    timings, others = interleaved(works, plan, patience)
    return Step(name, memory_format, batch, timings, others)


def _step(model: nn.Module, x: Tensor, labels: Tensor):  # noqa: ANN202
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return step


def _require_equal(name: str, models: dict[str, nn.Module], data: tuple[Tensor, Tensor]) -> None:
    """Errors of the gradients against float64: at most twice torch's, or one in ten thousand."""
    x, labels = data
    exact = network(name, "torch").double()
    truth = _gradient(exact, x.double(), labels)
    errors = {
        provider: float((_gradient(model, x, labels).double() - truth).norm() / truth.norm())
        for provider, model in models.items()
    }
    for provider, error in errors.items():
        if not error <= max(2 * errors["torch"], 1e-4):
            msg = (
                f"{name} with {provider}: expected gradients within {2 * errors['torch']:.2g} of "
                f"float64 (twice torch.nn's distance), got {error:.2g}. Nothing was timed."
            )
            raise GateError(msg)


def _gradient(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    loss = nn.functional.cross_entropy(model(x), labels)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
