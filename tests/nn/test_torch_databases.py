"""torch's own input databases (module_db, op_db), judged by torch.nn in float64."""

import copy
import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db

import bnkit
from bnkit.core import BatchNormWarning
from tests.tolerances import dtype_tolerance

TWINS = {
    getattr(torch.nn, f"BatchNorm{d}d"): getattr(bnkit.nn, f"BatchNorm{d}d") for d in (1, 2, 3)
}
MODULES = [info for info in module_db if info.module_cls in TWINS]
OPERATORS = [o for o in op_db if o.name == "nn.functional.batch_norm" and not o.variant_test_name]
# the samples of torch include an empty batch, about which ours warns
pytestmark = pytest.mark.filterwarnings("ignore::bnkit.core.errors.EmptyBatchWarning")


def inputs(info, dtype, training):
    return info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=True, training=training
    )


def test_the_databases_hold_what_they_held():
    assert len(MODULES) == 3
    assert sum(len(inputs(m, torch.float64, True)) for m in MODULES) >= 22
    samples = list(OPERATORS[0].sample_inputs("cpu", torch.float64))
    assert len(samples) >= 10


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("info", MODULES, ids=lambda m: m.module_cls.__name__)
def test_module_samples(info, dtype, training):
    for sample in inputs(info, dtype, training):
        arguments, keywords = sample.constructor_input.args, sample.constructor_input.kwargs
        theirs = info.module_cls(*arguments, **keywords).to(dtype).train(training)
        ours = TWINS[info.module_cls](*arguments, **keywords).to(dtype).train(training)
        ours.load_state_dict(theirs.state_dict())
        x = sample.forward_input.args[0]
        twin = x.detach().clone().requires_grad_()
        expected, got = theirs(x), ours(twin)
        tolerance = 10 * dtype_tolerance(str(dtype).removeprefix("torch."))
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
        if not got.numel():
            continue
        g = torch.randn_like(got)
        wanted = torch.autograd.grad(expected, [x, *theirs.parameters()], g)
        found = torch.autograd.grad(got, [twin, *ours.parameters()], g)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=100 * tolerance, atol=100 * tolerance)
        for key, value in theirs.state_dict().items():
            torch.testing.assert_close(
                ours.state_dict()[key], value, rtol=10 * tolerance, atol=10 * tolerance
            )


@pytest.mark.parametrize("info", MODULES, ids=lambda m: m.module_cls.__name__)
def test_module_error_inputs(info):
    samples = info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float64, requires_grad=False, training=True
    )
    for sample in samples:
        entry = sample.module_error_input
        keywords = entry.constructor_input.kwargs
        layer = TWINS[info.module_cls](*entry.constructor_input.args, **keywords).double()
        with pytest.raises(sample.error_type):
            layer(*entry.forward_input.args)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_operator_samples(dtype):
    for sample in OPERATORS[0].sample_inputs("cpu", dtype):
        ours = copy.deepcopy((sample.input, sample.args, sample.kwargs))
        wide = [v.double() if isinstance(v, torch.Tensor) else v for v in sample.args]
        keywords = {
            k: v.double() if isinstance(v, torch.Tensor) else v for k, v in sample.kwargs.items()
        }
        x = sample.input.double()
        if len(wide) + len(keywords) == 0 or (wide[:1] == [None] and not keywords.get("training")):
            with pytest.raises(RuntimeError):
                torch.nn.functional.batch_norm(x, *wide, **keywords)
            with pytest.raises(RuntimeError):
                bnkit.nn.functional.batch_norm(ours[0], *ours[1], **ours[2])
            continue
        expected = torch.nn.functional.batch_norm(x, *wide, **keywords)
        got = bnkit.nn.functional.batch_norm(ours[0], *ours[1], **ours[2])
        tolerance = 10 * dtype_tolerance(str(dtype).removeprefix("torch."))
        scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
        torch.testing.assert_close(
            got.double() / scale, expected / scale, rtol=tolerance, atol=tolerance
        )
        assert got.dtype == dtype


def test_warnings_of_ours_are_all_of_one_family():
    assert issubclass(bnkit.core.EmptyBatchWarning, BatchNormWarning)
