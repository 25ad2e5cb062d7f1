"""Architectures of transformers in small, built from their configurations without weights."""

import torch
import transformers as T
from transformers.models.granite_speech import modeling_granite_speech as granite


def img(side=32, channels=3):
    return torch.randn(2, channels, side, side)


def resnet(*stages):
    return T.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], out_features=[*stages]
    )


def detector(**more):
    names = ("encoder_layers", "decoder_layers")
    heads = ("encoder_attention_heads", "decoder_attention_heads")
    return {
        "backbone_config": resnet("stage4"), "use_timm_backbone": False, "backbone": None,
        "use_pretrained_backbone": False, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
        "num_queries": 5, **dict.fromkeys(names, 1), **dict.fromkeys(heads, 2), **more,
    }  # fmt: skip


# name -> (model, example inputs)
ARCHITECTURES = {
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
    "rt_detr_resnet": lambda: (
        T.RTDetrResNetBackbone(
            T.RTDetrResNetConfig(
                embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1]
            )
        ),
        img(64),
    ),
    "rt_detr": lambda: (
        T.RTDetrForObjectDetection(
            T.RTDetrConfig(
                backbone_config=T.RTDetrResNetConfig(
                    embedding_size=8,
                    hidden_sizes=[8, 16, 16, 16],
                    depths=[1, 1, 1, 1],
                    out_features=["stage2", "stage3", "stage4"],
                ),
                encoder_in_channels=[16, 16, 16],
                encoder_hidden_dim=16,
                encoder_ffn_dim=16,
                feat_strides=[8, 16, 32],
                d_model=16,
                decoder_in_channels=[16, 16, 16],
                decoder_ffn_dim=16,
                decoder_layers=2,
                num_queries=10,
                num_denoising=0,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                eval_size=None,
            )
        ),
        img(64),
    ),
    "rt_detr_v2": lambda: (
        T.RTDetrV2ForObjectDetection(
            T.RTDetrV2Config(
                backbone_config=T.RTDetrResNetConfig(
                    embedding_size=8,
                    hidden_sizes=[8, 16, 16, 16],
                    depths=[1, 1, 1, 1],
                    out_features=["stage2", "stage3", "stage4"],
                ),
                encoder_in_channels=[16, 16, 16],
                encoder_hidden_dim=16,
                encoder_ffn_dim=16,
                d_model=16,
                decoder_in_channels=[16, 16, 16],
                decoder_ffn_dim=16,
                decoder_layers=2,
                num_queries=10,
                num_denoising=0,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
            )
        ),
        img(64),
    ),
    "hgnet_v2": lambda: (
        T.HGNetV2ForImageClassification(
            T.HGNetV2Config(
                embedding_size=16,
                hidden_sizes=[16, 16, 24, 24],
                depths=[1, 1, 1, 1],
                stem_channels=[3, 8, 8],
                stage_in_channels=[8, 16, 16, 24],
                stage_mid_channels=[8, 8, 8, 8],
                stage_out_channels=[16, 16, 24, 24],
                stage_num_blocks=[1, 1, 1, 1],
                stage_numb_of_layers=[2, 2, 2, 2],
            )
        ),
        img(64),
    ),
    "d_fine": lambda: (
        T.DFineForObjectDetection(
            T.DFineConfig(
                backbone_config=T.HGNetV2Config(
                    embedding_size=16,
                    hidden_sizes=[16, 16, 24, 24],
                    depths=[1, 1, 1, 1],
                    stem_channels=[3, 8, 8],
                    stage_in_channels=[8, 16, 16, 24],
                    stage_mid_channels=[8, 8, 8, 8],
                    stage_out_channels=[16, 16, 24, 24],
                    stage_num_blocks=[1, 1, 1, 1],
                    stage_numb_of_layers=[2, 2, 2, 2],
                    out_features=["stage2", "stage3", "stage4"],
                ),
                encoder_in_channels=[16, 24, 24],
                encoder_hidden_dim=16,
                encoder_ffn_dim=16,
                d_model=16,
                decoder_in_channels=[16, 16, 16],
                decoder_ffn_dim=16,
                decoder_layers=2,
                num_queries=10,
                num_denoising=0,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
            )
        ),
        img(64),
    ),
    "detr": lambda: (T.DetrForObjectDetection(T.DetrConfig(**detector(d_model=16))), img(64)),
    "conditional_detr": lambda: (
        T.ConditionalDetrForObjectDetection(T.ConditionalDetrConfig(**detector(d_model=16))),
        img(64),
    ),
    "table_transformer": lambda: (
        T.TableTransformerForObjectDetection(T.TableTransformerConfig(**detector(d_model=16))),
        img(64),
    ),
    "dab_detr": lambda: (
        T.DabDetrForObjectDetection(T.DabDetrConfig(**detector(hidden_size=16))),
        img(64),
    ),
    "wav2vec2_conformer": lambda: (
        T.Wav2Vec2ConformerModel(
            T.Wav2Vec2ConformerConfig(
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                conv_dim=(16, 16),
                conv_stride=(4, 4),
                conv_kernel=(8, 8),
                num_conv_pos_embeddings=16,
                num_conv_pos_embedding_groups=2,
            )
        ),
        torch.randn(2, 2000),
    ),
    "seamless_m4t_speech": lambda: (
        T.SeamlessM4TForSpeechToText(
            T.SeamlessM4TConfig(
                hidden_size=16,
                speech_encoder_layers=1,
                speech_encoder_attention_heads=2,
                speech_encoder_intermediate_size=16,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=16,
                decoder_ffn_dim=16,
                vocab_size=50,
                feature_projection_input_dim=20,
                adaptor_kernel_size=3,
                adaptor_stride=2,
            )
        ),
        {"input_features": torch.randn(1, 24, 20), "decoder_input_ids": torch.tensor([[3, 4, 5]])},
    ),
    "fastspeech2_conformer": lambda: (
        T.FastSpeech2ConformerModel(
            T.FastSpeech2ConformerConfig(
                hidden_size=16,
                num_mel_bins=10,
                encoder_layers=1,
                decoder_layers=1,
                encoder_num_attention_heads=2,
                decoder_num_attention_heads=2,
                encoder_linear_units=16,
                decoder_linear_units=16,
                speech_decoder_postnet_units=8,
                duration_predictor_channels=8,
                energy_predictor_channels=8,
                pitch_predictor_channels=8,
                vocab_size=30,
            )
        ),
        {"input_ids": torch.tensor([[1, 2, 3, 4, 5]])},
    ),
    "speecht5": lambda: (
        T.SpeechT5ForTextToSpeech(
            T.SpeechT5Config(
                hidden_size=16,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=16,
                decoder_ffn_dim=16,
                vocab_size=30,
                num_mel_bins=8,
                speech_decoder_prenet_units=8,
                speech_decoder_postnet_units=8,
                speaker_embedding_dim=4,
            )
        ),
        {
            "input_ids": torch.tensor([[1, 2, 3, 4]]),
            "decoder_input_values": torch.randn(1, 6, 8),
            "speaker_embeddings": torch.randn(1, 4),
        },
    ),
    "clap_audio": lambda: (
        T.ClapAudioModel(
            T.ClapAudioConfig(
                patch_embeds_hidden_size=8,
                hidden_size=64,
                depths=[1, 1],
                num_attention_heads=[2, 2],
                spec_size=32,
                num_mel_bins=8,
                window_size=4,
                num_hidden_layers=2,
            )
        ),
        {
            "input_features": torch.randn(2, 1, 60, 8),
            "is_longer": torch.zeros(2, 1, dtype=torch.bool),
        },
    ),
    "patchtst": lambda: (
        T.PatchTSTForPrediction(
            T.PatchTSTConfig(
                num_input_channels=2,
                context_length=32,
                patch_length=8,
                patch_stride=8,
                num_hidden_layers=2,
                d_model=16,
                num_attention_heads=2,
                ffn_dim=32,
                prediction_length=4,
                norm_type="batchnorm",
            )
        ),
        torch.randn(2, 32, 2),
    ),
    "patchtsmixer": lambda: (
        T.PatchTSMixerForPrediction(
            T.PatchTSMixerConfig(
                context_length=32,
                patch_length=8,
                patch_stride=8,
                num_input_channels=2,
                d_model=16,
                num_layers=2,
                prediction_length=4,
                norm_mlp="BatchNorm",
            )
        ),
        torch.randn(2, 32, 2),
    ),
    "superglue": lambda: (
        T.SuperGlueForKeypointMatching(
            T.SuperGlueConfig(
                hidden_size=64,
                keypoint_encoder_sizes=[8, 16],
                gnn_layers_types=["self", "cross"],
                num_attention_heads=2,
                keypoint_detector_config=T.SuperPointConfig(
                    encoder_hidden_sizes=[8, 8, 8, 16],
                    decoder_hidden_size=16,
                    descriptor_decoder_dim=64,
                    max_keypoints=20,
                ),
            )
        ),
        torch.randn(1, 2, 3, 64, 64),
    ),
    "textnet": lambda: (T.TextNetForImageClassification(T.TextNetConfig()), img(64)),
    "granite_speech_enc": lambda: (
        granite.GraniteSpeechCTCEncoder(
            granite.GraniteSpeechEncoderConfig(
                input_dim=16,
                num_layers=2,
                hidden_dim=16,
                num_heads=2,
                dim_head=8,
                output_dim=8,
                context_size=8,
                max_pos_emb=16,
                conv_kernel_size=3,
            )
        ),
        torch.randn(2, 16, 16),
    ),
    "parakeet": lambda: (
        T.ParakeetEncoder(
            T.ParakeetEncoderConfig(
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                subsampling_conv_channels=8,
                num_mel_bins=32,
            )
        ),
        torch.randn(2, 64, 32),
    ),
    "zoedepth_bn": lambda: (
        T.ZoeDepthForDepthEstimation(
            T.ZoeDepthConfig(
                backbone_config=T.BeitConfig(
                    hidden_size=16,
                    num_hidden_layers=4,
                    num_attention_heads=2,
                    intermediate_size=32,
                    image_size=32,
                    patch_size=8,
                    out_features=["stage1", "stage2", "stage3", "stage4"],
                    reshape_hidden_states=False,
                ),
                neck_hidden_sizes=[8, 8, 8, 8],
                fusion_hidden_size=8,
                bottleneck_features=8,
                use_batch_norm_in_fusion_residual=True,
                num_relative_features=8,
                backbone_hidden_size=16,
            )
        ),
        img(32),
    ),
}
