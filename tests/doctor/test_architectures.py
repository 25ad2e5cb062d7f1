"""Published architectures, built from their configurations: no error when the purpose is training."""

import pytest
import torch

import bnkit

NAMES = {
    "ResNet": {},
    "RegNet": {},
    "MobileNetV1": {},
    "MobileNetV2": {},
    "EfficientNet": {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
    "ConvNext": {},
    "Levit": {},
    "PoolFormer": {},
    "MobileViT": {"image_size": 64},
    "Cvt": {},
    "SwiftFormer": {},
}


@pytest.mark.parametrize("name", [*NAMES, "Segformer"])
def test_no_errors_at_initialization(name):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(**NAMES.get(name, {}))
    kind = "SemanticSegmentation" if name == "Segformer" else "ImageClassification"
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}For{kind}")(config)
    size = 224 if name in {"Levit", "SwiftFormer"} else 64
    assert not bnkit.diagnose(model, purpose="train").errors
    images = torch.randn(16, 3, size, size)
    found = bnkit.diagnose(model, images, "train", batch_size=8)
    assert not found.errors
    assert not found.records or found.probe.layers
