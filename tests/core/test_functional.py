"""The functional form on arrays: bad input, edge policies of the specifications."""

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest

from bnkit.core import (
    BNKIT,
    KERAS3,
    MXNET_OP,
    PADDLE,
    TF_KERAS2_FUSED,
    EmptyBatchWarning,
    InputError,
    NonFiniteError,
    NonFiniteWarning,
    RunningStats,
    SpecError,
)
from bnkit.functional import batch_norm_backward, batch_norm_eval, batch_norm_train

X = np.random.default_rng(0).normal(size=(4, 3, 5))
STATE = RunningStats(np.full(3, 0.5), np.full(3, 2.0), 7, 1.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: batch_norm_train(X[0, 0]), InputError, "at least 2 dimensions"),
        (lambda: batch_norm_train(X, channel_axis=5), InputError, "got 5 for shape (4, 3, 5)"),
        (lambda: batch_norm_train(X, np.ones(4)), InputError, "weight of shape (3,)"),
        (lambda: batch_norm_train(X, bias=np.ones(5)), InputError, "bias of shape (3,)"),
        (lambda: batch_norm_eval(X, state=RunningStats(np.ones(5), np.ones(5))), InputError, "state.mean"),
        (lambda: batch_norm_train(X.astype(int)), InputError, "expected floating point values"),
        (lambda: batch_norm_train(X[:1, :, :1]), InputError, "more than one value per channel"),
        (lambda: batch_norm_train(X, spec=replace(BNKIT, eps=0.0)), SpecError, "eps must be > 0"),
        (lambda: batch_norm_train(X, spec=replace(BNKIT, virtual_batch_size=2)), SpecError, "virtual_batch_size=2"),
        (lambda: batch_norm_train(X, spec=replace(BNKIT, train_statistics="renorm")), SpecError, "'renorm'"),
        (lambda: batch_norm_backward(X[0], batch_norm_train(X).saved), InputError, "shape (4, 3, 5), got (3, 5)"),
        (lambda: batch_norm_train(X * np.inf, on_nonfinite="raise"), NonFiniteError, "in 3 channels of (3,)"),
    ],
)  # fmt: skip
def test_messages(call, error, message):
    with np.errstate(invalid="ignore"), pytest.raises(error, match=re.escape(message)) as raised:
        call()
    assert str(raised.value).startswith("batch_norm") or "batch norm:" in str(raised.value)


def same_state(a, b):
    np.testing.assert_array_equal(a.mean, b.mean)
    np.testing.assert_array_equal(a.var, b.var)
    assert a.batches == b.batches


def test_nonfinite_batches_are_left_out():
    bad = X.copy()
    bad[1, 2, 0] = np.nan
    with pytest.warns(NonFiniteWarning, match="1 channels of .*number 2"):
        got = batch_norm_train(bad, state=STATE)
    same_state(got.state, STATE)
    assert np.isnan(got.y[:, 2]).all()
    assert np.isfinite(got.y[:, :2]).all()
    spread = batch_norm_train(bad, state=STATE, on_nonfinite="propagate").state
    assert np.isnan(spread.var).tolist() == [False, False, True]


def test_empty_batch():
    with pytest.warns(EmptyBatchWarning, match="no samples"):
        got = batch_norm_train(X[:0], state=STATE)
    assert got.y.shape == (0, 3, 5)
    same_state(got.state, STATE)
    grads = batch_norm_backward(X[:0], got.saved)
    assert grads.weight.tolist() == [0, 0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ruined = batch_norm_train(X[:0].transpose(0, 2, 1), state=STATE, spec=KERAS3).state
    assert np.isnan(ruined.mean).all()


def test_one_value_per_channel_by_framework():
    one = X[:1, :, :1]
    identity = batch_norm_train(one, 2 * np.ones(3), np.ones(3), STATE, PADDLE)
    np.testing.assert_array_equal(identity.y, one)
    same_state(identity.state, STATE)
    grads = batch_norm_backward(one, identity.saved)
    np.testing.assert_array_equal(grads.x, one)
    assert grads.weight.tolist() == [0, 0, 0]
    fused = batch_norm_train(one, state=STATE, spec=TF_KERAS2_FUSED, channel_axis=1)
    np.testing.assert_allclose(fused.state.var, 0.99 * STATE.var)
    assert np.abs(fused.y).max() == 0
    cudnn = replace(TF_KERAS2_FUSED, single_value="nan")
    poisoned = batch_norm_train(
        one, state=STATE, spec=cudnn, channel_axis=1, on_nonfinite="propagate"
    )
    assert np.isnan(poisoned.state.var).all()


def test_a_fixed_weight_is_read_as_one():
    weight = np.full(3, 5.0)
    got = batch_norm_train(X, weight, spec=MXNET_OP)
    np.testing.assert_allclose(got.y, batch_norm_train(X, spec=MXNET_OP).y)
    np.testing.assert_allclose(
        batch_norm_eval(X, weight, state=STATE, spec=MXNET_OP),
        batch_norm_eval(X, state=STATE, spec=MXNET_OP),
    )
    assert batch_norm_backward(X, got.saved).weight.tolist() == [0, 0, 0]


def test_nothing_given_is_changed():
    x, weight, bias = X.copy(), np.ones(3), np.zeros(3)
    state = RunningStats(np.zeros(3), np.ones(3))
    for array in (x, weight, bias, state.mean, state.var):
        array.setflags(write=False)
    got = batch_norm_train(x, weight, bias, state)
    batch_norm_backward(x, got.saved)
    assert got.state.batches == 1


def test_masked_statistics_equal_those_of_the_unpadded_values():
    lengths = [5, 2, 3, 4]
    mask = np.arange(5)[None, None, :] < np.array(lengths)[:, None, None]
    padded = np.where(mask, X, 99.0)
    got = batch_norm_train(padded, sample_weights=mask.astype(float))
    flat = np.concatenate([X[i, :, :n].T for i, n in enumerate(lengths)])
    plain = batch_norm_train(flat)
    np.testing.assert_allclose(got.state.mean, plain.state.mean)
    np.testing.assert_allclose(got.state.var, plain.state.var)
    kept = np.concatenate([got.y[i, :, :n].T for i, n in enumerate(lengths)])
    np.testing.assert_allclose(kept, plain.y)


def test_a_channel_masked_whole_is_left_alone():
    mask = np.ones((4, 3, 5))
    mask[:, 1] = 0
    got = batch_norm_train(X, state=STATE, sample_weights=mask)
    assert got.state.mean[1] == STATE.mean[1]
    assert got.state.var[1] == STATE.var[1]
    assert np.isfinite(got.y).all()
    others = batch_norm_train(X, state=STATE).state
    np.testing.assert_allclose(got.state.var[[0, 2]], others.var[[0, 2]])
    grads = batch_norm_backward(X, got.saved)
    assert np.isfinite(grads.x).all()
    averaged = batch_norm_train(
        X, state=STATE, sample_weights=mask, spec=replace(BNKIT, masked_whole="zero")
    )
    np.testing.assert_allclose(averaged.state.var[1], 0.9 * STATE.var[1])


def test_nan_behind_the_mask_is_not_there():
    mask = np.ones((4, 1, 5))
    mask[:, :, 3:] = 0
    padded = np.where(mask == 0, np.nan, X)
    got = batch_norm_train(padded, state=STATE, sample_weights=mask)
    plain = batch_norm_train(X[:, :, :3], state=STATE)
    np.testing.assert_allclose(got.state.var, plain.state.var)
    grads = batch_norm_backward(X * mask, got.saved)
    np.testing.assert_allclose(grads.x[:, :, :3], batch_norm_backward(X[:, :, :3], plain.saved).x)


def test_masked_gradients_equal_those_of_the_unpadded_values():
    lengths = [5, 2, 3, 4]
    mask = (np.arange(5)[None, None, :] < np.array(lengths)[:, None, None]).astype(float)
    g = np.random.default_rng(1).normal(size=X.shape) * mask  # padding has no part in the loss
    flat = [np.concatenate([v[i, :, :n].T for i, n in enumerate(lengths)]) for v in (X, g)]
    plain = batch_norm_backward(flat[1], batch_norm_train(flat[0]).saved)
    got = batch_norm_backward(g, batch_norm_train(X, sample_weights=mask).saved)
    kept = np.concatenate([got.x[i, :, :n].T for i, n in enumerate(lengths)])
    np.testing.assert_allclose(kept, plain.x, atol=1e-12)
    np.testing.assert_allclose(got.weight, plain.weight)
    assert np.abs(got.x * (1 - mask)).max() == 0
