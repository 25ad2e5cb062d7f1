"""What the Triton kernels share: where a tile lies, the affine form, the activations."""

# A parameter is a pointer, a block, a number or a tuple of those, of the compiler's own types:
# ruff: noqa: ANN001, ANN201
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit
def locate(t, channel, shape, fixed: tl.constexpr):
    """Offsets of tile t and which of them exist: `(positions, channels)`."""
    n, c, s = shape
    across = tl.cdiv(s, fixed.span)
    i = tl.arange(0, fixed.planes * fixed.span)
    # the products leave 32 bits in a tensor of more than 2**31 values
    row = tl.cast(t // across, tl.int64) * fixed.planes + i // fixed.span
    column = tl.cast(t % across, tl.int64) * fixed.span + i % fixed.span
    offset = (row[:, None] * c + channel[None, :]) * s + column[:, None]
    inside = ((row < n) & (column < s))[:, None] & (channel < c)[None, :]
    return offset, inside


@triton.jit
def positions(t, shape, fixed: tl.constexpr):
    """How many positions of tile t exist, the same for each of its channels."""
    across = tl.cdiv(shape[2], fixed.span)
    planes = tl.minimum(shape[0] - (t // across) * fixed.planes, fixed.planes)
    return planes * tl.minimum(shape[2] - (t % across) * fixed.span, fixed.span)


@triton.jit
def merged(count, mean, m2, new_count, new_mean, new_m2):
    """Two sets of moments as one (Chan, Golub & LeVeque 1983; theory page, equation 9)."""
    total = count + new_count
    delta = new_mean - mean
    share = new_count / total
    return total, mean + delta * share, m2 + new_m2 + delta * delta * (count * share)


@triton.jit
def affine(parameters, statistics, channel, shape, fixed: tl.constexpr):
    """Per channel: mean, `invstd = 1 / sqrt(m2 / count + eps)`, `weight * invstd`, bias."""
    mean, m2, count = statistics
    weight, bias = parameters
    known = channel < shape[1]
    wide = mean.dtype.element_ty
    center = tl.load(mean + channel, known, 0.0)
    var = tl.load(m2 + channel, known, 0.0) / count
    # a number in the source would be rounded to float32
    invstd = 1 / tl.sqrt(var + tl.full([1], fixed.eps, wide))
    scale = invstd
    if weight is not None:
        scale = invstd * tl.load(weight + channel, known, 0.0).to(wide)
    shift = tl.zeros_like(center)
    if bias is not None:
        shift = tl.load(bias + channel, known, 0.0).to(wide)
    return center, invstd, scale, shift


@triton.jit
def activate(z, fixed: tl.constexpr):
    """The activation; NaN stays NaN, as in torch."""
    if fixed.act == "relu":
        z = tl.where(z <= 0, 0.0, z)
    elif fixed.act == "relu6":
        z = tl.where(z <= 0, 0.0, tl.where(z >= 6, 6.0, z))
    elif fixed.act == "leaky_relu":
        z = tl.where(z <= 0, z * tl.full([1, 1], fixed.slope, z.dtype), z)
    elif fixed.act == "silu":
        z = z / (1 + tl.exp(-z))
    return z


@triton.jit
def through(grad, z, fixed: tl.constexpr):
    """Gradient before the activation from the one behind it."""
    if fixed.act == "relu":
        grad = tl.where(z > 0, grad, 0.0)
    elif fixed.act == "relu6":
        grad = tl.where((z > 0) & (z < 6), grad, 0.0)
    elif fixed.act == "leaky_relu":
        grad = tl.where(z > 0, grad, grad * tl.full([1, 1], fixed.slope, z.dtype))
    elif fixed.act == "silu":
        p = 1 / (1 + tl.exp(-z))
        grad = grad * (p + z * (p - p * p))
    return grad
