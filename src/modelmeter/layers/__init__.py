"""The layers by what they do, and by the names of the vendor's classes."""

from modelmeter.layers import vendors
from modelmeter.layers.attention import CausalAttention, CrossAttention, GridAttention, SelfAttention
from modelmeter.layers.base import BaseLayer, Repeat, Sequence
from modelmeter.layers.block import CrossBlock, GridBlock, ResidualBlock, Transformer
from modelmeter.layers.conv import Conv2d, PatchEmbed
from modelmeter.layers.decoder import CausalLM, LearnedPositions, LMHead, TokenEmbedding
from modelmeter.layers.latent import LatentAttention
from modelmeter.layers.mixture import Experts, Mixture, Router
from modelmeter.layers.mlp import MLP, GatedMLP, MlpProjector
from modelmeter.layers.norm import CenteredNorm, LayerNorm, LayerNorm2d, RMSNorm, WideRMSNorm
from modelmeter.layers.rotary import LlamaRotaryEmbedding, RotaryEmbedding
from modelmeter.layers.scan import GatedDeltaNet
from modelmeter.layers.tower import CLIPVisionEmbeddings, DeepEncoder, ImageEncoderViT, PatchTower, SideBySide, VitModel
from modelmeter.layers.vendors import *  # noqa: F403

__all__ = ["MLP", "BaseLayer", "CLIPVisionEmbeddings", "CausalAttention", "CausalLM", "Conv2d", "DeepEncoder"]
__all__ += ["Experts", "GatedMLP", "GridAttention", "GridBlock", "ImageEncoderViT", "LMHead", "LayerNorm"]
__all__ += ["LayerNorm2d", "LlamaRotaryEmbedding", "Mixture", "MlpProjector", "PatchEmbed", "PatchTower", "RMSNorm"]
__all__ += ["Repeat", "ResidualBlock", "RotaryEmbedding", "Router", "SelfAttention", "Sequence", "SideBySide"]
__all__ += ["CenteredNorm", "LatentAttention", "TokenEmbedding", "Transformer", "VitModel", "WideRMSNorm"]
__all__ += ["CrossAttention", "CrossBlock", "GatedDeltaNet", "LearnedPositions"]
__all__ += vendors.__all__
