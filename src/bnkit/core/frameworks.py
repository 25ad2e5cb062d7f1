"""The frameworks by name: their specification, their words for it, and where that can be read.

`docs/specifications.md` prints all of it; `note` says what a specification alone does not show.
"""

from dataclasses import dataclass
from difflib import get_close_matches

from bnkit.core.errors import SpecError
from bnkit.core.presets import (
    BNKIT,
    CAFFE,
    CONTRIB,
    COREML,
    EQUINOX_BATCH,
    EQUINOX_EMA,
    FLAX,
    HAIKU,
    KERAS2_3_CONV,
    KERAS2_3_DENSE,
    KERAS3,
    MXNET,
    MXNET_OP,
    ONNX,
    PADDLE,
    TF_KERAS2_FUSED,
    TF_KERAS2_UNFUSED,
    TF_LAYERS_FUSED,
    TF_LAYERS_UNFUSED,
    TORCH,
)
from bnkit.core.spec import BatchNormSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One framework's batch norm: its specification and its own words for it.

    Attributes:
        key: The name on the command line and in `preset`.
        title: Framework and layer.
        version: The version measured or read.
        spec: What it computes.
        argument: Its name and default for the averaging constant, and which batch it weighs.
        names: Its names of weight, bias, running mean and running variance.
        source: Where it can be read, and whether it was run.
        note: What else a user must know.
    """

    key: str
    title: str
    version: str
    spec: BatchNormSpec
    argument: str
    names: tuple[str, str, str, str]
    source: str
    note: str = ""


_TORCH_NAMES = ("weight", "bias", "running_mean", "running_var")
_TF_NAMES = ("gamma", "beta", "moving_mean", "moving_variance")
_ALL = (
    Preset(
        key="bnkit",
        source="this repository, `src/bnkit`",
        title="bnkit.nn.BatchNorm1d/2d/3d",
        version="this one",
        spec=BNKIT,
        argument="momentum=0.1 weighs the new batch",
        names=_TORCH_NAMES,
        note="PyTorch's, with statistics never below float32.",
    ),
    Preset(
        key="torch",
        source="`torch/nn/modules/batchnorm.py`; run",
        title="torch.nn.BatchNorm1d/2d/3d",
        version="2.13.0",
        spec=TORCH,
        argument="momentum=0.1 weighs the new batch; None = cumulative",
        names=_TORCH_NAMES,
        note="Normalizes with vB, stores n/(n-1) vB. requires_grad_(False) does not freeze it.",
    ),
    Preset(
        key="tf-layers-fused",
        source="`tensorflow/core/kernels/fused_batch_norm_op.cc`; run",
        title="tf.layers.batch_normalization, 4-D",
        version="1.14, 1.15",
        spec=TF_LAYERS_FUSED,
        argument="momentum=0.99 weighs the old average",
        names=_TF_NAMES,
        note="Moves only where UPDATE_OPS run; training=False by default.",
    ),
    Preset(
        key="tf-layers-unfused",
        source="`tensorflow/python/keras/layers/normalization.py`; run",
        title="tf.layers.batch_normalization, not 4-D or fused=False",
        version="1.14, 1.15",
        spec=TF_LAYERS_UNFUSED,
        argument="momentum=0.99 weighs the old average",
        names=_TF_NAMES,
        note="The same layer stores another variance than its fused form.",
    ),
    Preset(
        key="contrib",
        source="`tensorflow/contrib/layers/python/layers/layers.py`; run",
        title="tf.contrib.layers.batch_norm, slim",
        version="1.15",
        spec=CONTRIB,
        argument="decay=0.999 weighs the old average",
        names=_TF_NAMES,
        note=(
            "No scale by default. 2-D input takes the fused path. zero_debias_moving_mean=True "
            "is debias='mean'. Frozen and empty behaviour were not run."
        ),
    ),
    Preset(
        key="tf-keras2-fused",
        source="`tf_keras/layers/normalization/batch_normalization.py`; run",
        title="tf.keras 2 BatchNormalization, 4-D and 5-D",
        version="2.21 (tf_keras)",
        spec=TF_KERAS2_FUSED,
        argument="momentum=0.99 weighs the old average",
        names=_TF_NAMES,
        note="trainable=False is inference mode. The fused kernel ignores a mask.",
    ),
    Preset(
        key="tf-keras2-unfused",
        source="`tf_keras/layers/normalization/batch_normalization.py`; run",
        title="tf.keras 2 BatchNormalization, 2-D and 3-D",
        version="2.21 (tf_keras)",
        spec=TF_KERAS2_UNFUSED,
        argument="momentum=0.99 weighs the old average",
        names=_TF_NAMES,
    ),
    Preset(
        key="keras2.3-dense",
        source="`keras/layers/normalization.py`; run on TensorFlow 1.14",
        title="multi-backend Keras 2.3 BatchNormalization, 2-D",
        version="2.3.1",
        spec=KERAS2_3_DENSE,
        argument="momentum=0.99 weighs the old average",
        names=_TF_NAMES,
        note="The sample size in its correction has eps subtracted too.",
    ),
    Preset(
        key="keras2.3-conv",
        source="`keras/layers/normalization.py`; run on TensorFlow 1.14",
        title="multi-backend Keras 2.3 BatchNormalization, 4-D",
        version="2.3.1",
        spec=KERAS2_3_CONV,
        argument="momentum=0.99 weighs the old average",
        names=_TF_NAMES,
        note="Corrected twice: by TensorFlow's kernel and by Keras.",
    ),
    Preset(
        key="keras3",
        source="`keras/src/layers/normalization/batch_normalization.py`; run",
        title="keras.layers.BatchNormalization",
        version="3.15.1",
        spec=KERAS3,
        argument="momentum=0.99 weighs the old average",
        names=_TF_NAMES,
        note=(
            "Computes in float32 even for a float64 layer. Its torch backend computes "
            "E[x^2] - E[x]^2 and can store a negative variance."
        ),
    ),
    Preset(
        key="flax",
        source="`flax/linen/normalization.py`, `flax/nnx/nn/normalization.py`; run",
        title="flax.linen.BatchNorm, flax.nnx.BatchNorm",
        version="0.12.8",
        spec=FLAX,
        argument="momentum=0.99 weighs the old average",
        names=("scale", "bias", "mean", "var"),
        note="use_fast_variance=True is the default.",
    ),
    Preset(
        key="equinox-ema",
        source="`equinox/nn/_batch_norm.py`; run",
        title='equinox.nn.BatchNorm(mode="ema")',
        version="0.13.8",
        spec=EQUINOX_EMA,
        argument="momentum=0.99 weighs the old average",
        names=("weight", "bias", "state[0]", "state[1]"),
        note="Normalizes with the updated running statistics in training too.",
    ),
    Preset(
        key="equinox-batch",
        source="`equinox/nn/_batch_norm.py`; run",
        title='equinox.nn.BatchNorm(mode="batch")',
        version="0.13.8",
        spec=EQUINOX_BATCH,
        argument="momentum=0.99 weighs the old average",
        names=("weight", "bias", "hidden_mean", "hidden_var"),
        note="Debiases a variance that starts at one: 99 + var after the first default step.",
    ),
    Preset(
        key="haiku",
        source="`haiku/_src/batch_norm.py`; run",
        title="haiku.BatchNorm",
        version="0.0.17",
        spec=HAIKU,
        argument="decay_rate (no default) weighs the old average; the preset takes 0.9",
        names=("scale", "offset", "mean_ema", "var_ema"),
        note="After init(is_training=True) the average is that of the init batch.",
    ),
    Preset(
        key="onnx",
        source="`onnx/docs/Changelog.md`, BatchNormalization; run in ONNX Runtime",
        title="ONNX BatchNormalization, opset 7 to 15",
        version="1.23.2, ORT 1.31.1",
        spec=ONNX,
        argument="momentum=0.9 weighs the old average",
        names=("scale", "B", "input_mean", "input_var"),
        note="The training form is decided by training_mode from opset 14 on.",
    ),
    Preset(
        key="paddle",
        source="`paddle/phi/kernels/cpu/batch_norm_kernel.cc`; run",
        title="paddle.nn.BatchNorm1D/2D/3D, CPU",
        version="3.3.1",
        spec=PADDLE,
        argument="momentum=0.9 weighs the old average",
        names=("weight", "bias", "_mean", "_variance"),
        note="One value per channel: y = x, without weight and bias.",
    ),
    Preset(
        key="mxnet",
        source="`src/operator/nn/batch_norm.cc`; run",
        title="mxnet.gluon.nn.BatchNorm, CPU",
        version="1.9.1",
        spec=MXNET,
        argument="momentum=0.9 weighs the old average",
        names=("gamma", "beta", "running_mean", "running_var"),
        note="A forward pass without a backward pass leaves the statistics alone.",
    ),
    Preset(
        key="mxnet-op",
        source="`src/operator/nn/batch_norm.cc`; run",
        title="mxnet.sym.BatchNorm, CPU",
        version="1.9.1",
        spec=MXNET_OP,
        argument="momentum=0.9 weighs the old average",
        names=("gamma", "beta", "moving_mean", "moving_var"),
        note="fix_gamma=True: the stored scale is read as 1.",
    ),
    Preset(
        key="caffe",
        source="`src/caffe/layers/batch_norm_layer.cpp`; read, not run",
        title="Caffe BatchNorm (scale and shift live in a Scale layer)",
        version="BVLC master (source)",
        spec=CAFFE,
        argument="moving_average_fraction=0.999 weighs the old sum",
        names=("Scale blob 0", "Scale blob 1", "blob 0", "blob 1"),
        note="Stores sums and their weight (blob 2): an exactly debiased average.",
    ),
    Preset(
        key="coreml",
        source="`coremltools` MIL operator batch_norm; read, not run",
        title="CoreML MIL batch_norm",
        version="coremltools 9.0 (source)",
        spec=COREML,
        argument="none: inference only",
        names=("gamma", "beta", "mean", "variance"),
    ),
)

PRESETS: dict[str, Preset] = {p.key: p for p in _ALL}


def preset(name: str) -> Preset:
    """Return the preset of that name; case, `_` and `-` do not matter.

    Args:
        name: A key of `PRESETS`, such as `"keras3"`.

    Returns:
        The preset with its specification.

    Raises:
        SpecError: No preset has that name; the message lists the nearest ones.

    Example:
        >>> from bnkit.core import preset
        >>> preset("Keras3").spec.eps
        0.001
    """
    key = name.strip().lower().replace("_", "-")
    if key in PRESETS:
        return PRESETS[key]
    near = [k for k in PRESETS if k.startswith(key)] or get_close_matches(key, PRESETS, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    msg = f"unknown specification {name!r}: {hint}Known: {', '.join(PRESETS)}."
    raise SpecError(msg)
