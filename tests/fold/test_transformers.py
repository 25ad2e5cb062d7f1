"""Architectures of transformers: nothing silently wrong, within the target in float32."""

import copy

import pytest
import torch

import bnkit
from tests.fold.networks import batch_norms, lived

pytest.importorskip("transformers", reason="transformers is not installed")

from tests.fold.architectures import ARCHITECTURES

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # what transformers and its models say of themselves
    pytest.mark.timeout(120),
]
# Batch norms without a neighbour that could take them, by how many there are: behind a shortcut,
# first in the network, or behind code that computes with sizes of the input.
LEFT = {"efficientnet": 1, "swiftformer": 1, "clap_audio": 1, "patchtst": 4, "patchtsmixer": 4,
        "textnet": 11}  # fmt: skip
UNUSED = {"dpt": 2, "zoedepth_bn": 2}  # layers that its forward pass leaves out


def loud(model):
    """Weights that neither fade nor explode, so that an error anywhere reaches the output."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            values = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(1.3 * values / parameter[0].numel() ** 0.5)
    return model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name):
    torch.manual_seed(0)
    model, inputs = ARCHITECTURES[name]()
    folding = bnkit.fold(lived(model), inputs)
    assert folding.proof.relative_error <= 2e-6
    assert len(folding.kept) == LEFT.get(name, 0)
    assert len(folding.refused) == UNUSED.get(name, 0)
    assert all(r.reason for r in folding.records if r.action != "folded")
    assert set(batch_norms(folding.model)) <= set(folding.refused)
    # the algebra, with weights that let every layer count; some models do not run in float64
    proof = bnkit.fold(loud(copy.deepcopy(model)), inputs).proof
    wide = [c for c in proof.checks if c.dtype == "float64" and not c.note]
    assert all(c.relative_error <= 1e-12 for c in wide)
    assert wide or name in ("dab_detr", "fastspeech2_conformer")


def test_there_are_enough():
    assert len(ARCHITECTURES) >= 30
