"""Image models of transformers in small, built from their configurations without weights."""

import pytest
import torch

T = pytest.importorskip("transformers", reason="transformers is not installed")


def img(side=32, channels=3):
    return torch.randn(2, channels, side, side)


# name -> (model, example inputs)
VISION = {
    "resnet": lambda: (
        T.ResNetForImageClassification(
            T.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2])
        ),
        img(),
    ),
    "resnet_basic": lambda: (
        T.ResNetModel(
            T.ResNetConfig(
                embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic"
            )
        ),
        img(),
    ),
    "regnet": lambda: (
        T.RegNetForImageClassification(
            T.RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], groups_width=4)
        ),
        img(),
    ),
    "mobilenet_v1": lambda: (
        T.MobileNetV1ForImageClassification(T.MobileNetV1Config(depth_multiplier=0.25)),
        img(64),
    ),
    "mobilenet_v2": lambda: (
        T.MobileNetV2ForImageClassification(T.MobileNetV2Config(depth_multiplier=0.25)),
        img(64),
    ),
    "mobilenet_v2_seg": lambda: (
        T.MobileNetV2ForSemanticSegmentation(T.MobileNetV2Config(depth_multiplier=0.25)),
        img(64),
    ),
    "efficientnet": lambda: (
        T.EfficientNetForImageClassification(
            T.EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320)
        ),
        img(64),
    ),
    "levit": lambda: (
        T.LevitForImageClassification(
            T.LevitConfig(
                image_size=64,
                hidden_sizes=[16, 24, 32],
                num_attention_heads=[2, 2, 2],
                depths=[1, 1, 1],
                key_dim=[4, 4, 4],
            )
        ),
        img(64),
    ),
    "mobilevit": lambda: (
        T.MobileViTForImageClassification(
            T.MobileViTConfig(
                hidden_sizes=[16, 24, 32],
                neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32],
                image_size=64,
            )
        ),
        img(64),
    ),
    "mobilevitv2": lambda: (
        T.MobileViTV2ForImageClassification(
            T.MobileViTV2Config(width_multiplier=0.25, image_size=64)
        ),
        img(64),
    ),
    "mobilevit_seg": lambda: (
        T.MobileViTForSemanticSegmentation(
            T.MobileViTConfig(
                hidden_sizes=[16, 24, 32],
                neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32],
                image_size=64,
                aspp_out_channels=16,
            )
        ),
        img(64),
    ),
    "segformer": lambda: (
        T.SegformerForSemanticSegmentation(
            T.SegformerConfig(
                hidden_sizes=[8, 8, 16, 16],
                depths=[1, 1, 1, 1],
                num_attention_heads=[1, 1, 2, 2],
                decoder_hidden_size=16,
            )
        ),
        img(64),
    ),
    "swiftformer": lambda: (
        T.SwiftFormerForImageClassification(
            T.SwiftFormerConfig(embed_dims=[8, 8, 16, 16], depths=[1, 1, 1, 1])
        ),
        img(64),
    ),
    "dpt": lambda: (
        T.DPTForSemanticSegmentation(
            T.DPTConfig(
                hidden_size=16,
                num_hidden_layers=4,
                num_attention_heads=2,
                intermediate_size=32,
                image_size=32,
                patch_size=8,
                backbone_out_indices=[0, 1, 2, 3],
                neck_hidden_sizes=[8, 8, 8, 8],
                fusion_hidden_size=8,
                use_batch_norm_in_fusion_residual=True,
                is_hybrid=False,
            )
        ),
        img(32),
    ),
    "beit_seg": lambda: (
        T.BeitForSemanticSegmentation(
            T.BeitConfig(
                hidden_size=16,
                num_hidden_layers=4,
                num_attention_heads=2,
                intermediate_size=32,
                image_size=32,
                patch_size=8,
                out_indices=[0, 1, 2, 3],
                num_labels=5,
            )
        ),
        img(32),
    ),
    "data2vec_seg": lambda: (
        T.Data2VecVisionForSemanticSegmentation(
            T.Data2VecVisionConfig(
                hidden_size=16,
                num_hidden_layers=4,
                num_attention_heads=2,
                intermediate_size=32,
                image_size=32,
                patch_size=8,
                out_indices=[0, 1, 2, 3],
                num_labels=5,
            )
        ),
        img(32),
    ),
    "upernet": lambda: (
        T.UperNetForSemanticSegmentation(
            T.UperNetConfig(
                backbone_config=T.ConvNextConfig(
                    hidden_sizes=[8, 8, 16, 16],
                    depths=[1, 1, 1, 1],
                    out_features=["stage1", "stage2", "stage3", "stage4"],
                ),
                hidden_size=16,
                auxiliary_in_channels=16,
                auxiliary_channels=8,
                num_labels=4,
            )
        ),
        img(64),
    ),
    "align": lambda: (
        T.AlignVisionModel(
            T.AlignVisionConfig(width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320)
        ),
        img(64),
    ),
}
