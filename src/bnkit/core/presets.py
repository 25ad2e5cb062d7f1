"""What each framework's batch norm computes: one specification each.

Every value was measured on, or read in the source of, the version that `bnkit.core.frameworks`
names; there too are the frameworks' own words for it.
"""

from dataclasses import replace

from bnkit.core.spec import BatchNormSpec

# TensorFlow's fused kernel of the wheels 1.12 to 2.3 raises a smaller eps to this.
_TF_FUSED_MIN_EPS = 1.001e-5

BNKIT = BatchNormSpec(mask="where")
TORCH = BatchNormSpec(statistics_dtype="parameter")
TF_LAYERS_FUSED = BatchNormSpec(
    eps=1e-3,
    min_eps=_TF_FUSED_MIN_EPS,
    ema_weight=0.01,
    channel_axis=-1,
    single_value="zero",
    update_when="update_ops",
    frozen_normalizes_with="batch",
    empty_batch="nan",
    sync_weighting="none",
)
TF_LAYERS_UNFUSED = replace(TF_LAYERS_FUSED, min_eps=0.0, running_correction=0, several_axes=True)
CONTRIB = replace(TF_LAYERS_FUSED, ema_weight=0.001, has_weight=False)
TF_KERAS2_FUSED = replace(
    TF_LAYERS_FUSED,
    min_eps=0.0,
    update_when="forward",
    frozen_normalizes_with="running",
)
TF_KERAS2_UNFUSED = replace(
    TF_KERAS2_FUSED,
    running_correction=0,
    several_axes=True,
    mask="weighted",
    masked_whole="zero",
    sync_weighting="count",
)
KERAS2_3_DENSE = replace(
    TF_KERAS2_UNFUSED,
    running_correction="n-1-eps",
    update_when="update_ops",
    mask="none",
    masked_whole="skip",
    several_axes=False,
    sync_weighting="none",
)
KERAS2_3_CONV = replace(KERAS2_3_DENSE, running_correction="double")
KERAS3 = BatchNormSpec(
    eps=1e-3,
    ema_weight=0.01,
    running_correction=0,
    channel_axis=-1,
    single_value="zero",
    frozen_normalizes_with="running",
    mask="where",
    mask_eps=1e-7,
    masked_whole="zero",
    empty_batch="nan",
)
FLAX = BatchNormSpec(
    ema_weight=0.01,
    running_correction=0,
    channel_axis=-1,
    several_axes=True,
    single_value="zero",
    variance_algorithm="fast_clipped",
    update_when="returned",
    mask="where",
    masked_whole="nan",
    sync_weighting="equal",
    empty_batch="nan",
)
EQUINOX_EMA = BatchNormSpec(
    ema_weight=0.01,
    first_batch="copy",
    train_statistics="updated_running",
    initial_var=0.0,
    running_correction=0,
    single_value="zero",
    statistics_dtype="parameter",
    update_when="returned",
    sync_weighting="equal",
    empty_batch="nan",
)
EQUINOX_BATCH = replace(
    EQUINOX_EMA,
    first_batch="average",
    train_statistics="batch",
    initial_var=1.0,
    debias="both",
)
HAIKU = BatchNormSpec(
    ema_weight=0.1,
    running_correction=0,
    debias="both",
    initial_var=0.0,
    channel_axis=-1,
    single_value="zero",
    variance_algorithm="fast",
    statistics_dtype="input",
    parameter_shape="broadcast",
    update_when="returned",
    sync_weighting="equal",
    empty_batch="nan",
)
ONNX = BatchNormSpec(
    running_correction=0,
    single_value="zero",
    statistics_dtype="parameter",
    update_when="returned",
    sync_weighting="none",
    empty_batch="nan",
)
PADDLE = BatchNormSpec(running_correction=0, single_value="identity")
MXNET = BatchNormSpec(
    running_correction=0, single_value="zero", update_when="backward", sync_weighting="none"
)
MXNET_OP = replace(MXNET, eps=1e-3, weight_fixed=True)
CAFFE = BatchNormSpec(
    ema_weight=0.001,
    debias="both",
    stored_average="sum",
    initial_var=0.0,
    single_value="zero",
    has_weight=False,
    has_bias=False,
    sync_weighting="none",
)
COREML = BatchNormSpec(
    running_correction=0,
    train_statistics="running",
    statistics_dtype="parameter",
    update_when="never",
    sync_weighting="none",
)
