"""The layers, one concept a file; a class has its vendor's name where it mirrors a vendor class."""

from modelmeter.layers.causal_lm import CausalLM
from modelmeter.layers.clip import (
    CLIPVisionEmbeddings,
    NoTPAttention,
    NoTPFeedForward,
    NoTPTransformer,
    NoTPTransformerBlock,
    VitModel,
)
from modelmeter.layers.conv import Conv2d, PatchEmbed
from modelmeter.layers.deepseek import DeepseekV2DecoderLayer, DeepseekV2MLP, DeepseekV2MoE, MoEGate
from modelmeter.layers.embedding import LMHead, TokenEmbedding
from modelmeter.layers.llama import LlamaAttention, LlamaFlashAttention2, LlamaRotaryEmbedding
from modelmeter.layers.norm import DeepseekV2RMSNorm, LayerNorm, LayerNorm2d
from modelmeter.layers.projector import MlpProjector
from modelmeter.layers.sam import Attention, Block, ImageEncoderViT, MLPBlock

__all__ = [
    "Attention",
    "Block",
    "CLIPVisionEmbeddings",
    "CausalLM",
    "Conv2d",
    "DeepseekV2DecoderLayer",
    "DeepseekV2MLP",
    "DeepseekV2MoE",
    "DeepseekV2RMSNorm",
    "ImageEncoderViT",
    "LMHead",
    "LayerNorm",
    "LayerNorm2d",
    "LlamaAttention",
    "LlamaFlashAttention2",
    "LlamaRotaryEmbedding",
    "MLPBlock",
    "MlpProjector",
    "MoEGate",
    "NoTPAttention",
    "NoTPFeedForward",
    "NoTPTransformer",
    "NoTPTransformerBlock",
    "PatchEmbed",
    "TokenEmbedding",
    "VitModel",
]
