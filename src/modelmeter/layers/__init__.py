"""The layers by what they do, and by the names of the vendor's classes."""

from modelmeter.layers.attention import CausalAttention, GridAttention, SelfAttention
from modelmeter.layers.base import BaseLayer, Repeat, Sequence
from modelmeter.layers.block import GridBlock, ResidualBlock
from modelmeter.layers.conv import Conv2d, PatchEmbed
from modelmeter.layers.decoder import CausalLM
from modelmeter.layers.embedding import LMHead, TokenEmbedding
from modelmeter.layers.mixture import Experts, Mixture, Router
from modelmeter.layers.mlp import MLP, GatedMLP
from modelmeter.layers.norm import LayerNorm, LayerNorm2d, RMSNorm
from modelmeter.layers.projector import MlpProjector
from modelmeter.layers.rotary import LlamaRotaryEmbedding, RotaryEmbedding
from modelmeter.layers.tower import (
    CLIPVisionEmbeddings,
    DeepEncoder,
    ImageEncoderViT,
    PatchTower,
    SideBySide,
    Transformer,
    VitModel,
)
from modelmeter.layers.vendors import (
    Attention,
    Block,
    DeepseekV2DecoderLayer,
    DeepseekV2MLP,
    DeepseekV2MoE,
    DeepseekV2RMSNorm,
    LlamaAttention,
    LlamaFlashAttention2,
    MergedExperts,
    MergedExpertsMoE,
    MLPBlock,
    MoEGate,
    NoTPAttention,
    NoTPFeedForward,
    NoTPTransformer,
    NoTPTransformerBlock,
)

__all__ = [
    "MLP",
    "Attention",
    "BaseLayer",
    "Block",
    "CLIPVisionEmbeddings",
    "CausalAttention",
    "CausalLM",
    "Conv2d",
    "DeepEncoder",
    "DeepseekV2DecoderLayer",
    "DeepseekV2MLP",
    "DeepseekV2MoE",
    "DeepseekV2RMSNorm",
    "Experts",
    "GatedMLP",
    "GridAttention",
    "GridBlock",
    "ImageEncoderViT",
    "LMHead",
    "LayerNorm",
    "LayerNorm2d",
    "LlamaAttention",
    "LlamaFlashAttention2",
    "LlamaRotaryEmbedding",
    "MLPBlock",
    "MergedExperts",
    "MergedExpertsMoE",
    "Mixture",
    "MlpProjector",
    "MoEGate",
    "NoTPAttention",
    "NoTPFeedForward",
    "NoTPTransformer",
    "NoTPTransformerBlock",
    "PatchEmbed",
    "PatchTower",
    "RMSNorm",
    "Repeat",
    "ResidualBlock",
    "RotaryEmbedding",
    "Router",
    "SelfAttention",
    "Sequence",
    "SideBySide",
    "TokenEmbedding",
    "Transformer",
    "VitModel",
]
