"""Single layers that real frameworks wrote: into every other framework, with the same inference."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bnkit.conversion.call import _side
from bnkit.conversion.specs import spec_of
from bnkit.core import PRESETS, TORCH, BatchNormState, ConversionError, convert_state, read_state
from tests.conversion.cases import DATA, Case, files_of
from tests.tolerances import relative_error

LIMIT = 1e-6


def singles():
    found = []
    for path in sorted(DATA.glob("*_single*/case.json")):
        case = json.loads(path.read_text(encoding="utf-8"))
        name = path.parent.name
        found += [(name, f) for f in files_of(name) if f != "blobs.npz" and case["graph"]]
    return found


def read(name, file):
    """State and specification of the one batch norm of a file."""
    case = Case(name)
    side, _ = _side(case.folder / file)
    layer = next(x for x in side.layers if x.is_batch_norm)
    r = case.norms[0]["resolved"]
    unnamed = layer.tensors.get("unnamed")  # of a layer without weight or bias
    tensors = {
        ("bias" if r["center"] else "weight") if role == "unnamed" else role: tensor
        for role, tensor in layer.tensors.items()
    }
    assert unnamed is None or r["center"] != r["scale"]
    spec, _ = spec_of(layer, None, side.world)
    spec = replace(spec, eps=r["epsilon"], min_eps=r["effective_epsilon"], several_axes=True)
    spec = replace(spec, ema_weight=None if r["rule"] == "cumulative" else 1 - r["keep"])
    spec = replace(spec, weight_fixed=bool(r.get("fix_gamma")))
    state = BatchNormState.from_roles({role: side.read(n) for role, n in tensors.items()})
    return case, state, spec


def inference(case, state, spec):
    """In float32 with the numbers of the state, as a framework computes it."""
    r = read_state(state, spec)
    axis, x = case.norms[0]["resolved"]["axis"], case.z["x"]
    shape = [x.shape[a] if a in axis else 1 for a in range(x.ndim)]
    mean, var, weight, bias = (v.astype(np.float32).reshape(shape) for v in r[:4])
    return (x - mean) / np.sqrt(var + np.float32(r.eps)) * weight + bias


@pytest.mark.parametrize(("name", "file"), singles())
def test_every_layer_infers_alike_in_every_framework(name, file):
    case, state, spec = read(name, file)
    if spec.several_axes and np.squeeze(state.running_mean).ndim > 1:
        with pytest.raises(ConversionError, match="expected one channel axis"):
            convert_state(state, spec, TORCH)
    for key, preset in PRESETS.items():
        target = replace(preset.spec, several_axes=True, weight_fixed=False)
        done = convert_state(state, spec, target)
        error = relative_error(inference(case, done.state, target), case.z["y_eval"])
        assert error < LIMIT + case.own_error, key
        assert done.state.running_var.dtype == np.float32


def test_statistics_that_were_never_kept_are_asked_for():
    case = Case("torch_no_running_stats")
    side, _ = _side(case.folder / "layer.safetensors")
    assert "batch_norm" in side.layers[0].kinds
    roles = {role: side.read(n) for role, n in side.layers[0].tensors.items()}
    state = BatchNormState.from_roles(roles)
    with pytest.raises(ConversionError, match="recalibrate it first"):
        read_state(state, TORCH)
