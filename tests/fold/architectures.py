"""Architectures of transformers in small, built from their configurations without weights."""

import pytest
import torch

from tests.fold.architectures_vision import VISION, img

T = pytest.importorskip("transformers", reason="transformers is not installed")
granite = pytest.importorskip("transformers.models.granite_speech.modeling_granite_speech")


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
    **VISION,
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
