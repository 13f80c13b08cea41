"""What names of modules say."""

from __future__ import annotations

import pytest
from torch import nn
from transformers import PretrainedConfig

from loramixer.tuner.sites import split_sites, token_streams


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        (["model.layers.3.self_attn.q_proj"], [(3, "q_proj")]),
        (["backbone.layers.12.mixer.in_proj", "backbone.layers.12.mixer.x_proj"], [(12, "in_proj"), (12, "x_proj")]),
        (["transformer.h.0.attn.c_attn"], [(0, "c_attn")]),
        (["3.linear", "classifier"], [(3, "linear"), (0, "classifier")]),
        (
            [
                "encoder.block.1.layer.0.SelfAttention.q",
                "decoder.block.1.layer.0.SelfAttention.q",
                "decoder.block.1.layer.1.EncDecAttention.q",
                "decoder.block.0.layer.2.DenseReluDense.wo",
            ],
            [
                (1, "encoder.SelfAttention.q"),
                (1, "decoder.SelfAttention.q"),
                (1, "decoder.EncDecAttention.q"),
                (0, "wo"),
            ],
        ),
        (
            ["decoder.block.0.layer.0.SelfAttention.v", "decoder.block.0.layer.1.EncDecAttention.v"],
            [(0, "SelfAttention.v"), (0, "EncDecAttention.v")],
        ),
        (
            [
                "bert.encoder.layer.0.attention.output.dense",
                "bert.encoder.layer.0.intermediate.dense",
                "bert.encoder.layer.0.output.dense",
                "bert.encoder.layer.1.output.dense",
            ],
            [(0, "attention.output.dense"), (0, "intermediate.dense"), (0, "output.dense"), (1, "output.dense")],
        ),
        (
            ["layers.5.mlp.experts.0.w1", "layers.5.mlp.experts.1.w1"],
            [(5, "mlp.experts.0.w1"), (5, "mlp.experts.1.w1")],
        ),
    ],
)
def test_layer_and_projection(modules, expected):
    assert split_sites(modules) == [(*pair, module) for pair, module in zip(expected, modules, strict=True)]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(2, 2), nn.Linear(2, 2)


class EncoderDecoder(nn.Module):
    """Module names as in a backbone whose cross-attention has the given name."""

    def __init__(self, cross: str, is_encoder_decoder: bool = True) -> None:
        super().__init__()
        self.config = PretrainedConfig(is_encoder_decoder=is_encoder_decoder)
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.self_attn, self.decoder.self_attn = Attention(), Attention()
        self.decoder.add_module(cross, Attention())

    def get_encoder(self) -> nn.Module:
        return self.encoder


MODULES = ["encoder.self_attn.v_proj", "decoder.self_attn.q_proj", "decoder.self_attn.v_proj"]


@pytest.mark.parametrize("cross", ["EncDecAttention", "encoder_attn", "crossattention", "cross_attn"])
def test_keys_and_values_of_cross_attention_see_the_encoder(cross):
    modules = [*MODULES, f"decoder.{cross}.q_proj", f"decoder.{cross}.v_proj"]
    expected = ["encoder", "decoder", "decoder", "decoder", "encoder"]
    assert token_streams(EncoderDecoder(cross), modules) == expected


def test_without_a_known_name_only_keys_and_values_are_unknown():
    modules = [*MODULES, "decoder.other.q_proj", "decoder.other.v_proj"]
    expected = ["encoder", "decoder", "unknown", "decoder", "unknown"]
    assert token_streams(EncoderDecoder("other"), modules) == expected


def test_a_decoder_alone_has_one_stream():
    assert token_streams(EncoderDecoder("encoder_attn", is_encoder_decoder=False), MODULES) == ["tokens"] * 3
