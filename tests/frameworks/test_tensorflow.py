"""TensorFlow 2 against its presets: Keras 2 (`tf_keras`) and `tf.compat.v1.layers`."""

import os
from dataclasses import replace

import numpy as np
import pytest

from bnkit.core import (
    KERAS3,
    TF_KERAS2_FUSED,
    TF_KERAS2_UNFUSED,
    TF_LAYERS_FUSED,
    TF_LAYERS_UNFUSED,
)
from bnkit.functional import batch_norm_eval, batch_norm_train
from tests.frameworks.step import Step, agree, infer, make_batch, misses, train
from tests.tolerances import FRAMEWORK, relative_error

pytestmark = pytest.mark.frameworks
WHY = "`make test-frameworks` installs TensorFlow and Keras 2"
os.environ["TF_USE_LEGACY_KERAS"] = "1"  # without it tf.compat.v1.layers is empty
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = pytest.importorskip("tensorflow", reason=WHY)
tf_keras = pytest.importorskip("tf_keras", reason=WHY)
v1 = tf.compat.v1

# name -> shape of the input, arguments of the layer, whether the fused kernel runs
LAYERS = {
    "2d": ((16, 5), {}, False),
    "3d": ((8, 7, 5), {}, False),
    "4d": ((4, 6, 5, 3), {}, True),
    "4d unfused": ((4, 6, 5, 3), {"fused": False}, False),
    "4d axis 1": ((4, 3, 6, 5), {"axis": 1}, True),
    "4d axis 1 unfused": ((4, 3, 6, 5), {"axis": 1, "fused": False}, False),
    "two axes": ((6, 3, 4, 2), {"axis": [1, 3]}, False),
    "5d": ((2, 3, 4, 5, 3), {}, True),
    "two values": ((2, 5), {}, False),
    "two values fused": ((2, 1, 1, 5), {}, True),
    "no center": ((4, 6, 5, 3), {"center": False}, True),
    "no scale": ((4, 6, 5, 3), {"scale": False}, True),
    "neither": ((16, 5), {"center": False, "scale": False}, False),
    "momentum 0.5": ((4, 6, 5, 3), {"momentum": 0.5}, True),
    "momentum 0": ((16, 5), {"momentum": 0.0}, False),
    "large epsilon": ((4, 6, 5, 3), {"epsilon": 0.3}, True),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def spec_of(arguments, preset):
    # the kernel of TensorFlow 2.21 has no smallest eps any more
    return replace(
        preset,
        eps=arguments.get("epsilon", preset.eps),
        ema_weight=1 - arguments.get("momentum", 1 - preset.ema_weight),
        min_eps=0.0,
    )


def case(name, fused_preset=TF_KERAS2_FUSED, unfused_preset=TF_KERAS2_UNFUSED):
    shape, arguments, fused = LAYERS[name]
    axis = arguments.get("axis", -1)
    batch = make_batch(
        shape,
        axis if isinstance(axis, int) else tuple(axis),
        scale=arguments.get("scale", True),
        center=arguments.get("center", True),
    )
    return batch, arguments, spec_of(arguments, fused_preset if fused else unfused_preset)


def stored_values(batch):
    pairs = (
        ("gamma", batch.weight), ("beta", batch.bias), ("moving_mean", batch.mean),
        ("moving_variance", batch.var),
    )  # fmt: skip
    return {key: value for key, value in pairs if value is not None}


def build(batch, arguments):
    layer = tf_keras.layers.BatchNormalization(**arguments)
    layer.build(batch.x.shape)
    for key, value in stored_values(batch).items():
        variable = getattr(layer, key)
        variable.assign(value.reshape(variable.shape))
    return layer


def flat(value, batch):
    return None if value is None else np.asarray(value).reshape(batch.mean.shape)


def keras_step(layer, batch, **call):
    x = tf.constant(batch.x)
    sources = [x] + [v for v in (layer.gamma, layer.beta) if v is not None]
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True, **call)
    grads = iter(tape.gradient(y, sources, output_gradients=tf.constant(batch.dy)))
    dx = next(grads)
    by = [None if v is None else flat(next(grads), batch) for v in (layer.gamma, layer.beta)]
    statistics = (flat(v, batch) for v in (layer.moving_mean, layer.moving_variance))
    return Step(y, *statistics, dx, *by)


@each_layer
def test_training_step(name):
    batch, arguments, spec = case(name)
    layer = build(batch, arguments)
    assert layer.fused is LAYERS[name][2]
    agree(train(batch, spec), keras_step(layer, batch), batch, FRAMEWORK)


@each_layer
def test_inference(name):
    batch, arguments, spec = case(name)
    y = build(batch, arguments)(tf.constant(batch.x), training=False)
    assert relative_error(infer(batch, spec), y) < FRAMEWORK


def test_the_presets_have_the_defaults_of_the_layer():
    for batch, spec in (
        (make_batch((4, 5)), TF_KERAS2_UNFUSED),
        (make_batch((4, 3, 3, 5)), TF_KERAS2_FUSED),
    ):
        layer = tf_keras.layers.BatchNormalization()
        layer.build(batch.x.shape)
        assert spec.eps == layer.epsilon
        assert spec.ema_weight == pytest.approx(1 - layer.momentum)
        assert layer.axis == [batch.x.ndim + spec.channel_axis]
        assert (spec.has_weight, spec.has_bias) == (layer.scale, layer.center)
        assert (layer.moving_mean.numpy() == spec.initial_mean).all()
        assert (layer.moving_variance.numpy() == spec.initial_var).all()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("2d", TF_KERAS2_FUSED), ("4d", TF_KERAS2_UNFUSED), ("4d", KERAS3)],
    ids=["fused for unfused", "unfused for fused", "Keras 3 for Keras 2"],
)
def test_a_wrong_specification_misses_by_far(name, wrong):
    batch, _, spec = case(name)
    expected = keras_step(build(batch, {"momentum": 0.5}), batch)
    spec, other = (replace(s, ema_weight=0.5, eps=1e-3) for s in (spec, wrong))
    agree(train(batch, spec), expected, batch, FRAMEWORK)
    assert misses(train(batch, other), expected, batch)["var"] > 100 * FRAMEWORK
    assert misses(train(batch, replace(spec, eps=1e-5)), expected, batch)["y"] > 10 * FRAMEWORK


def test_the_momentum_of_tensorflow_is_the_weight_of_the_old():
    batch, arguments, spec = case("2d")
    expected = keras_step(build(batch, arguments), batch)
    reverse = replace(spec, ema_weight=1 - spec.ema_weight)
    found = misses(train(batch, reverse), expected, batch)
    assert min(found["mean"], found["var"]) > 1e3 * FRAMEWORK


def test_small_epsilon_of_the_fused_kernel():
    batch = make_batch((4, 6, 5, 3))
    batch = batch._replace(x=batch.x * np.float32(1e-3))
    layer = build(batch, {"epsilon": 1e-7})
    y = layer(tf.constant(batch.x), training=True)
    spec = replace(TF_KERAS2_FUSED, eps=1e-7)
    assert relative_error(train(batch, spec).y, y) < FRAMEWORK
    old = replace(spec, min_eps=TF_LAYERS_FUSED.min_eps)  # the wheels up to 2.3
    assert relative_error(train(batch, old).y, y) > 0.1


def test_mask():
    batch = make_batch((8, 7, 5))
    mask = np.random.default_rng(0).random((8, 7)) < 0.6
    expected = keras_step(build(batch, {}), batch, mask=tf.constant(mask))
    weights = mask[..., None].astype("float32")
    got = train(batch, TF_KERAS2_UNFUSED, sample_weights=weights)
    agree(got, expected, batch, FRAMEWORK)
    assert max(misses(train(batch, TF_KERAS2_UNFUSED), expected, batch).values()) > 1e-2


def test_batch_that_is_masked_whole():
    batch = make_batch((8, 7, 5))
    expected = keras_step(build(batch, {}), batch, mask=tf.zeros((8, 7), tf.bool))
    assert relative_error(expected.var, 0.99 * batch.var) < FRAMEWORK  # mean 0 and variance 0
    got = train(batch, TF_KERAS2_UNFUSED, sample_weights=np.zeros((8, 7, 1), "float32"))
    agree(got, expected, batch, FRAMEWORK)


@pytest.mark.filterwarnings("ignore:[^~]*Masking is not supported:UserWarning")
def test_fused_kernel_ignores_the_mask():
    batch = make_batch((4, 6, 5, 3))
    mask = np.random.default_rng(0).random((4, 6, 5)) < 0.6
    expected = keras_step(build(batch, {}), batch, mask=tf.constant(mask))
    assert TF_KERAS2_FUSED.mask == "none"
    agree(train(batch, TF_KERAS2_FUSED), expected, batch, FRAMEWORK)


@pytest.mark.parametrize("shape", [(1, 5), (1, 1, 1, 5)], ids=["unfused", "fused"])
def test_one_value_per_channel(shape):
    batch = make_batch(shape)
    spec = TF_KERAS2_UNFUSED if len(shape) == 2 else TF_KERAS2_FUSED
    expected = keras_step(build(batch, {}), batch)
    agree(train(batch, spec), expected, batch, FRAMEWORK)
    assert relative_error(expected.var, 0.99 * batch.var) < FRAMEWORK


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("shape", [(0, 5), (0, 4, 4, 5)], ids=["unfused", "fused"])
def test_empty_batch_destroys_the_moving_statistics(shape):
    batch = make_batch(shape)
    spec = TF_KERAS2_UNFUSED if len(shape) == 2 else TF_KERAS2_FUSED
    expected, got = keras_step(build(batch, {}), batch), train(batch, spec)
    for mean, var in (expected[1:3], got[1:3]):
        assert np.isnan(mean).all()
        assert np.isnan(var).all()
    assert got.y.shape == expected.y.shape == shape


def test_frozen_keras_layer_is_in_inference_mode():
    batch, arguments, spec = case("4d")
    layer = build(batch, arguments)
    layer.trainable = False
    y = layer(tf.constant(batch.x), training=True)
    assert spec.frozen_normalizes_with == "running"
    assert relative_error(infer(batch, spec), y) < FRAMEWORK
    assert (layer.moving_mean.numpy() == batch.mean).all()


def layers_step(batch, arguments, *, update=True, **switches):
    """One step of `tf.compat.v1.layers.batch_normalization`, and its output in inference."""
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, batch.x.shape)
        initial = {
            f"{key}_initializer": v1.constant_initializer(value)
            for key, value in stored_values(batch).items()
        }
        switches = {"training": True, "name": "bn"} | switches
        y = v1.layers.batch_normalization(x, **arguments, **initial, **switches)
        stored = {v.op.name.rpartition("/")[2]: v for v in v1.global_variables("bn/")}
        sources = [x] + [stored[k] for k in ("gamma", "beta") if k in stored]
        grads = tf.gradients(y, sources, grad_ys=tf.constant(batch.dy))
        updates = v1.get_collection(v1.GraphKeys.UPDATE_OPS)
        session.run(v1.global_variables_initializer())
        y, grads, _ = session.run((y, grads, updates if update else ()), {x: batch.x})
        grads = iter(grads)
        dx = next(grads)
        by = [flat(next(grads), batch) if k in stored else None for k in ("gamma", "beta")]
        after = session.run([stored[k] for k in ("moving_mean", "moving_variance")])
        return Step(y, *(flat(v, batch) for v in after), dx, *by), len(updates)


deprecated = pytest.mark.filterwarnings("ignore:.*is deprecated:UserWarning")


@deprecated
@each_layer
def test_training_step_of_tf_layers(name):
    batch, arguments, spec = case(name, TF_LAYERS_FUSED, TF_LAYERS_UNFUSED)
    expected, updates = layers_step(batch, arguments)
    assert updates == 2
    agree(train(batch, spec), expected, batch, FRAMEWORK)


@deprecated
@each_layer
def test_inference_of_tf_layers(name):
    batch, arguments, spec = case(name, TF_LAYERS_FUSED, TF_LAYERS_UNFUSED)
    expected, updates = layers_step(batch, arguments, training=False)
    assert updates == 0
    assert relative_error(infer(batch, spec), expected.y) < FRAMEWORK


@deprecated
def test_tf_layers_move_only_with_their_update_ops():
    batch, arguments, spec = case("4d", TF_LAYERS_FUSED)
    expected, updates = layers_step(batch, arguments, update=False)
    assert updates == 2
    assert spec.update_when == "update_ops"
    assert (expected.mean == batch.mean).all()
    assert (expected.var == batch.var).all()


@deprecated
@pytest.mark.parametrize("name", ["2d", "4d"])
def test_frozen_tf_layers_normalize_with_the_batch(name):
    batch, arguments, spec = case(name, TF_LAYERS_FUSED, TF_LAYERS_UNFUSED)
    expected, updates = layers_step(batch, arguments, trainable=False)
    assert spec.frozen_normalizes_with == "batch"
    assert updates == 0
    assert (expected.mean == batch.mean).all()
    assert relative_error(train(batch, spec).y, expected.y) < FRAMEWORK
    assert relative_error(infer(batch, spec), expected.y) > 1e-2


def test_ten_steps_and_inference():
    batch = make_batch((4, 6, 5, 3), scale=False, center=False)
    layer = tf_keras.layers.BatchNormalization(momentum=0.8, scale=False, center=False)
    spec, state = replace(TF_KERAS2_FUSED, ema_weight=0.2), None
    rng = np.random.default_rng(0)
    for _ in range(10):
        x = (batch.x + rng.standard_normal(batch.x.shape)).astype("float32")
        layer(tf.constant(x), training=True)
        state = batch_norm_train(x, state=state, spec=spec).state
    assert relative_error(state.mean, layer.moving_mean) < FRAMEWORK
    assert relative_error(state.var, layer.moving_variance) < FRAMEWORK
    y = layer(tf.constant(batch.x), training=False)
    assert relative_error(batch_norm_eval(batch.x, state=state, spec=spec), y) < FRAMEWORK
