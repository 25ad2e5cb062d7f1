"""`bnkit prepare`: compile the CPU kernels before they are needed."""

from typing import Annotated, Literal

from cyclopts import Parameter

from bnkit.cli.console import language
from bnkit.cli.console import out as console
from bnkit.cli.display import Display

Switch = Parameter(negative="")
Several = Parameter(negative="", consume_multiple=True)
Dtype = Literal["float32", "float64", "float16", "bfloat16"]
Act = Literal["none", "relu", "relu6", "leaky_relu", "silu"]


def prepare(
    *,
    dtype: Annotated[tuple[Dtype, ...], Several] = ("float32",),
    act: Annotated[tuple[Act, ...], Several] = ("none",),
    residual: Annotated[bool, Switch] = False,
    quiet: Annotated[bool, Switch] = False,
) -> None:
    """Compile the CPU kernels now, so that no training step waits for them.

    What is compiled stays on disk; for a container image, run this while it is built.

    Args:
        dtype: Dtypes of the inputs.
        act: Activations fused into the batch norm; none is the plain layer.
        residual: Also with a residual that is added before the activation.
        quiet: Print nothing but errors.
    """
    import torch

    from bnkit.ops.prepare import prepare as compile_loops

    dtypes = [getattr(torch, name) for name in dtype]
    with Display(("compile",), language(None), quiet=quiet) as display:
        count = compile_loops(
            dtypes,
            act,
            residual=residual,
            progress=lambda done, total, note: display("compile", done, total, note),
        )
    if not quiet:
        console().print(f"Ready: {count} kind{'s' if count > 1 else ''} of batch norm.")
