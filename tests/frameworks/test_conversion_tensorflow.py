"""TensorFlow and Keras 2 themselves: networks moved to PyTorch and back, outputs compared."""

import os

import numpy as np
import pytest
import torch

import bnkit
from tests.frameworks.converted import (
    FLATTEN,
    LIMIT,
    SHAPE,
    TorchNet,
    images,
    random_net,
    torch_outputs,
)
from tests.tolerances import relative_error

pytestmark = pytest.mark.frameworks
WHY = "`make test-frameworks` installs TensorFlow and Keras 2"
os.environ["TF_USE_LEGACY_KERAS"] = "1"  # without it tf.compat.v1.layers is empty
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = pytest.importorskip("tensorflow", reason=WHY)
tf_keras = pytest.importorskip("tf_keras", reason=WHY)
v1 = tf.compat.v1
FC1 = {"fc1": FLATTEN}


def keras_net(**norm):
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.Conv2D(6, 3, strides=2, use_bias=False),
            layers.BatchNormalization(**norm),
            layers.ReLU(),
            layers.DepthwiseConv2D(2, use_bias=False),
            layers.BatchNormalization(**norm),
            layers.Conv2DTranspose(5, 2, strides=2),
            layers.BatchNormalization(**norm),
            layers.Flatten(),
            layers.Dense(8),
            layers.BatchNormalization(**norm),
            layers.Dense(2),
        ]
    )


def trained(model, steps=3):
    for step in range(steps):
        model(images(step) * 3 + 1, training=True)
    return model


def saved(model, folder, kind):
    if kind == "checkpoint":
        return tf.train.Checkpoint(model=model).save(str(folder / "ckpt"))
    if kind == "weights":
        model.save_weights(str(folder / "weights"))
        return str(folder / "weights")
    if kind == "saved_model":
        tf.saved_model.save(model, str(folder / "saved"))
        return str(folder / "saved")
    path = str(folder / f"model{kind}")
    model.save(path)
    return path


@pytest.mark.parametrize("kind", ["checkpoint", "weights", "saved_model", ".h5", ".keras"])
@pytest.mark.filterwarnings("ignore")  # TensorFlow's own, about its formats
def test_keras_2(tmp_path, kind):
    model = trained(keras_net())
    target = TorchNet()
    bnkit.convert(saved(model, tmp_path, kind), target, flatten=FC1).apply()
    want = model(images(), training=False).numpy()
    assert relative_error(torch_outputs(target, images()), want) < LIMIT


@pytest.mark.parametrize("norm", [{"renorm": True}, {"virtual_batch_size": 2}])
@pytest.mark.filterwarnings("ignore")
def test_renormalization_and_ghost_batches_keep_their_inference(tmp_path, norm):
    model = trained(keras_net(**norm))
    target = TorchNet()
    plan = bnkit.convert(saved(model, tmp_path, "checkpoint"), target, flatten=FC1)
    plan.apply()
    want = model(images(), training=False).numpy()
    assert relative_error(torch_outputs(target, images()), want) < LIMIT
    if "renorm" in norm:
        assert not plan.batch_norms[0].conversion.one_step.output


@pytest.mark.filterwarnings("ignore")
def test_torch_to_keras_2(tmp_path):
    source, model = random_net(), keras_net()
    model.build((None, *SHAPE[1:]))
    model.save(tmp_path / "model.h5")
    dense = model.layers[8].name
    flatten = {f"model_weights/{dense}/{dense}": FLATTEN}
    plan = bnkit.convert(source, tmp_path / "model.h5", flatten=flatten)
    new = plan.write(tmp_path / "new.h5")
    back = tf_keras.models.load_model(new, compile=False)
    got = back(images(), training=False).numpy()
    assert relative_error(got, torch_outputs(source, images())) < 2 * LIMIT


def graph_net(x, training):
    layers = v1.layers
    x = layers.conv2d(x, 6, 3, 2, use_bias=False)
    x = tf.nn.relu(layers.batch_normalization(x, training=training))
    x = v1.nn.depthwise_conv2d(
        x, v1.get_variable("depthwise_weights", (2, 2, 6, 1)), (1, 1, 1, 1), "VALID"
    )
    x = layers.batch_normalization(x, training=training)
    x = layers.conv2d_transpose(x, 5, 2, 2)
    x = layers.flatten(layers.batch_normalization(x, training=training))
    x = layers.batch_normalization(layers.dense(x, 8), training=training)
    return layers.dense(x, 2)


@pytest.mark.filterwarnings("ignore")
def test_tf_layers(tmp_path):
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, SHAPE)
        with v1.variable_scope("net"):
            y_train = graph_net(x, True)
        with v1.variable_scope("net", reuse=True):
            y = graph_net(x, False)
        updates = v1.get_collection(v1.GraphKeys.UPDATE_OPS)
        session.run(v1.global_variables_initializer())
        for step in range(3):
            session.run([y_train, updates], {x: images(step) * 3 + 1})
        prefix = v1.train.Saver().save(session, str(tmp_path / "model.ckpt"), 3)
        want = session.run(y, {x: images()})
        lost = v1.train.Saver(v1.trainable_variables()).save(session, str(tmp_path / "lost.ckpt"))
    target = TorchNet()
    plan = bnkit.convert(prefix, target, flatten=FC1)
    plan.apply()
    assert relative_error(torch_outputs(target, images()), np.asarray(want)) < LIMIT
    assert torch.equal(target.bn1.num_batches_tracked, torch.tensor(0))
    with pytest.raises(bnkit.BatchNormError, match="its statistics would not"):
        bnkit.convert(lost, target, flatten=FC1)
