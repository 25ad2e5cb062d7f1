"""`BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d`: drop-in for those of `torch.nn`."""

import torch

from bnkit.nn.layers.base import BatchNormBase


class BatchNorm2d(BatchNormBase, torch.nn.BatchNorm2d):
    """Batch norm over `(N, C, H, W)`.

    `y = (x - mean) / sqrt(var + eps) * weight + bias` per channel, with the statistics of the
    batch in training and the running ones in eval (Ioffe & Szegedy 2015, Algorithms 1 and 2, the
    latter with an exponential average).

    Drop-in for `torch.nn.BatchNorm2d`, and an instance of it: the same constructor, state_dict,
    repr and kinds of error. It differs where torch's is measured to be wrong or to stop:

    - statistics are exact to float32 rounding in both memory formats (torch's CPU kernel for
      channels_last loses up to all digits of the variance) and stay float32 in a 16-bit module;
    - a batch with NaN or infinity does not enter the running statistics; it is counted in
      `nonfinite_batches` and warned about once (`on_nonfinite`);
    - an empty batch is warned about and not counted in `num_batches_tracked`;
    - training works under `torch.func` (jacrev, vmap, hessian), and `momentum=None` compiles
      with `fullgraph=True`;
    - complex input is normalized by `E|x - mean|**2`;
    - messages name the layer within the model.

    Args:
        num_features: Channels C.
        eps: Added to the variance, inside the square root.
        momentum: Weight of the new batch in the running statistics; None = cumulative average.
        affine: Learn a weight (and a bias).
        track_running_stats: Keep running statistics; without them eval uses the batch too.
        device: Device of parameters and buffers.
        dtype: Dtype of the parameters; the statistics are never narrower than float32.
        bias: Learn a bias, where `affine`.
        on_nonfinite: `"skip"` leaves such a batch out, `"propagate"` averages it in as torch
            does, `"raise"` leaves it out and stops. A compiled graph cannot stop, and reading a
            counter on a GPU would wait for it: there the next `train()` or `eval()` warns.

    Raises:
        InputError: Input of wrong rank, channels, dtype or device; `eps <= 0` or one value per
            channel in training.
        NonFiniteError: With `on_nonfinite="raise"`.

    Example:
        >>> import torch, bnkit
        >>> layer = bnkit.nn.BatchNorm2d(3)
        >>> y = layer(torch.randn(8, 3, 5, 5))
        >>> tuple(y.shape), int(layer.num_batches_tracked)
        ((8, 3, 5, 5), 1)
    """

    ranks = (4,)


class BatchNorm1d(BatchNormBase, torch.nn.BatchNorm1d):
    """Batch norm over `(N, C)` or `(N, C, L)`; otherwise as `BatchNorm2d`.

    Example:
        >>> import torch, bnkit
        >>> layer = bnkit.nn.BatchNorm1d(2, affine=False, track_running_stats=False)
        >>> layer(torch.tensor([[1.0, 10.0], [3.0, 50.0]])).round().tolist()
        [[-1.0, -1.0], [1.0, 1.0]]
    """

    ranks = (2, 3)


class BatchNorm3d(BatchNormBase, torch.nn.BatchNorm3d):
    """Batch norm over `(N, C, D, H, W)`; otherwise as `BatchNorm2d`.

    Example:
        >>> import torch, bnkit
        >>> tuple(bnkit.nn.BatchNorm3d(4)(torch.randn(2, 4, 2, 3, 3)).shape)
        (2, 4, 2, 3, 3)
    """

    ranks = (5,)
