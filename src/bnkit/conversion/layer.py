"""A layer of a network as its tensors show it, whichever framework it belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bnkit.conversion.kernels import Layout

Kind = Literal["batch_norm", "conv", "conv_transpose", "depthwise", "dense", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The tensors of one layer, by role, with what their names and shapes say about it.

    Attributes:
        name: Its scope or module path.
        kinds: What it can be, the likeliest first: a 4-D kernel may belong to a convolution, a
            transposed or a depthwise one, until its counterpart tells.
        tensors: Names of its tensors by role: `weight`, `bias`, and those of
            `bnkit.formats.ROLES`.
        shapes: Their shapes as stored, by role.
        facts: What a file or module says of a batch norm: `eps`, `ema_weight`, `attributes`.
        path: Where its tensors are, if that is another name; numbers in it give the order.
        layouts: How its kernel is laid out, where that is not as usual in its framework.
    """

    name: str
    kinds: tuple[Kind, ...]
    tensors: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    layouts: Mapping[Kind, Layout] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The name by whose numbers it is ordered."""
        return self.path or self.name

    @property
    def is_batch_norm(self) -> bool:
        """Whether it is a batch norm, which nothing else can take the place of."""
        return self.kinds == ("batch_norm",)

    def shown(self) -> str:
        """Name and shape of its weight, for a message."""
        role = "weight" if "weight" in self.shapes else next(iter(self.shapes), None)
        return f"{self.name!r} {self.shapes[role] if role else ''}".rstrip()
