"""Layers by the names of DeepSeek-OCR's own classes: each fixes what that vendor fixes, and nothing else.

The equations, what they omit and their axes are those of the layer that each is one of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from modelmeter.layers.attention import CausalAttention, GridAttention, SelfAttention
from modelmeter.layers.block import GridBlock, ResidualBlock, Transformer
from modelmeter.layers.mixture import Experts, Mixture, Router
from modelmeter.layers.mlp import MLP, GatedMLP
from modelmeter.layers.norm import RMSNorm

__all__ = ["Attention", "Block", "DeepseekV2DecoderLayer", "DeepseekV2MLP", "DeepseekV2MoE", "DeepseekV2RMSNorm"]
__all__ += ["LlamaAttention", "LlamaFlashAttention2", "MLPBlock", "MergedExperts", "MergedExpertsMoE", "MoEGate"]
__all__ += ["NoTPAttention", "NoTPFeedForward", "NoTPTransformer", "NoTPTransformerBlock"]


@final
class Attention(GridAttention):
    """SAM's attention over a grid of patches, with decomposed relative positions.

    Vendor: Attention in deepencoder/sam_vary_sdpa.py. Paper: arXiv 2112.01526 (MViTv2). Axes: as GridAttention.

    >>> Attention(d=4, h=2, e=2, side=3).forward_tensor_core_flops(b=1, u=3, v=3) == 2 * 9 * 4 * (4 * 4 + 2 * 9 + 2 * 3)
    True
    """


@final
class Block(GridBlock):
    """SAM's pre-norm block; with `w` its attention runs in w x w windows of the padded grid.

    Vendor: Block in deepencoder/sam_vary_sdpa.py. Paper: arXiv 2304.02643 (SAM). Axes: as GridBlock.

    >>> Block.sizes
    'b u v'
    """


@final
class MLPBlock(MLP):
    """Two linear layers with GELU between. y = W2 gelu(W1 x + B1) + B2.

    Vendor: MLPBlock in deepencoder/sam_vary_sdpa.py. Paper: arXiv 2010.11929 (ViT). Axes: as MLP.

    >>> MLPBlock(d=2, f=8).forward_cuda_core_flops(b=1, s=3) == 3 * (8 + 5 * 8 + 2)
    True
    """


@final
class NoTPAttention(SelfAttention):
    """CLIP's attention, q, k and v one matrix. y = W_out softmax(scale q k) v.

    Vendor: NoTPAttention in deepencoder/clip_sdpa.py. Paper: arXiv 1706.03762. Axes: as SelfAttention.

    >>> NoTPAttention(d=4, h=2, e=2).forward_tensor_core_flops(b=1, s=3) == 2 * (4 * 3 * 16 + 2 * 9 * 4)
    True
    """

    one_matrix = True


@final
@dataclass(frozen=True)
class NoTPFeedForward(MLP):
    """Two linear layers with quick-gelu between. y = W2 quick_gelu(W1 x + B1) + B2.

    Vendor: NoTPFeedForward in deepencoder/clip_sdpa.py. Paper: arXiv 2103.00020 (CLIP). Axes: as MLP.

    >>> NoTPFeedForward(d=2, f=8).forward_cuda_core_flops(b=1, s=3) == 3 * (8 + 6 * 8 + 2)
    True
    """

    activation: str = "quick_gelu"


@final
class NoTPTransformerBlock(ResidualBlock):
    """CLIP's pre-norm block. h = x + attn(norm1(x)); y = h + mlp(norm2(h)).

    Vendor: NoTPTransformerBlock in deepencoder/clip_sdpa.py. Paper: arXiv 2103.00020 (CLIP). Axes: as ResidualBlock.

    >>> from modelmeter.layers import LayerNorm
    >>> NoTPTransformerBlock(NoTPAttention(4, 2, 2), NoTPFeedForward(4, 8), LayerNorm(4)).sizes
    'b s'
    """


@final
class NoTPTransformer(Transformer):
    """`l` of CLIP's blocks. y = block(...block(x)).

    Vendor: NoTPTransformer in deepencoder/clip_sdpa.py. Axes: as Transformer.

    >>> NoTPTransformer.sizes
    'b s'
    """


@final
class DeepseekV2MLP(GatedMLP):
    """A gated MLP (SwiGLU). y = W_down (silu(W_gate x) * W_up x).

    Vendor: DeepseekV2MLP in modeling_deepseekv2.py. Paper: arXiv 2002.05202 (GLU variants). Axes: as GatedMLP.

    >>> DeepseekV2MLP(d=2, f=3).forward_tensor_core_flops(b=1, s=5) == 3 * 2 * 5 * 2 * 3
    True
    """


@final
class MoEGate(Router):
    """The router of a mixture, in fp32. y = scale * top_k(softmax(W x)).

    Vendor: MoEGate in modeling_deepseekv2.py (softmax, greedy). Paper: arXiv 2401.06066 (DeepSeekMoE). Axes: as Router.

    >>> MoEGate(d=4, E=8, k=2).forward_tensor_core_flops(b=1, s=3) == 2 * 3 * 4 * 8
    True
    """


@final
class DeepseekV2MoE(Mixture):
    """A mixture of gated MLPs: k of E routed experts a token, and shared ones.

    Vendor: DeepseekV2MoE in modeling_deepseekv2.py. Paper: arXiv 2401.06066 (DeepSeekMoE). Axes: as Mixture.

    >>> moe = DeepseekV2MoE(MoEGate(d=4, E=1, k=1), f=3, shared=None)
    >>> moe.forward_tensor_core_flops(b=1, s=5) == 3 * 2 * 5 * 4 * 3 + 2 * 5 * 4
    True
    """


@final
class MergedExperts(Experts):
    """Routed experts that hold gate and up as one matrix.

    Vendor: UnlimitedOcrTextExperts in transformers. Paper: arXiv 2401.06066 (DeepSeekMoE). Axes: as Experts.

    >>> MergedExperts(d=4, E=3, f=5).cost(b=1, s=1, k=2).weight_io_bytes == 2 * (2 * 3 * 4 * 5)
    True
    """

    one_matrix = True


@final
class MergedExpertsMoE(Mixture):
    """A mixture whose experts hold gate and up as one matrix.

    Vendor: UnlimitedOcrTextMoe in transformers. Paper: arXiv 2401.06066 (DeepSeekMoE). Axes: as Mixture.

    >>> moe = MergedExpertsMoE(MoEGate(d=4, E=1, k=1), f=3, shared=None)
    >>> moe.forward_tensor_core_flops(b=1, s=5) == 3 * 2 * 5 * 4 * 3 + 2 * 5 * 4
    True
    """

    experts = MergedExperts


@final
class DeepseekV2RMSNorm(RMSNorm):
    """Root-mean-square normalisation. y = x / sqrt(mean(x^2) + eps) * W; 4 d + 2 FLOPs a row.

    Vendor: DeepseekV2RMSNorm in modeling_deepseekv2.py. Paper: arXiv 1910.07467. Axes: as RMSNorm.

    >>> DeepseekV2RMSNorm(d=8).forward_cuda_core_flops(b=1, s=3)
    102
    """


@final
class DeepseekV2DecoderLayer(ResidualBlock):
    """A pre-norm decoder layer with a dense MLP or a mixture.

    Vendor: DeepseekV2DecoderLayer in modeling_deepseekv2.py. Paper: arXiv 2405.04434 (DeepSeek-V2).
    Axes: b sequences, s tokens, t context.

    >>> DeepseekV2DecoderLayer(LlamaAttention(8, 1, 2, 4), DeepseekV2MLP(8, 3), DeepseekV2RMSNorm(8)).sizes
    'b s t'
    """


@final
class LlamaAttention(CausalAttention):
    """Causal attention on a KV cache. y = W_o softmax(scale rope(q) rope(k)) v.

    Vendor: LlamaAttention in transformers 4.46. Paper: arXiv 2302.13971, GQA 2305.13245. Axes: as CausalAttention.

    >>> LlamaAttention(8, 1, 2, 4).forward_memory_kvcache_bytes(b=1, s=1, t=5) == 2 * 5 * 4 * 2
    True
    """


@final
class LlamaFlashAttention2(CausalAttention):
    """LlamaAttention on the FlashAttention-2 kernel: its scores stay on chip in any runtime.

    Vendor: LlamaFlashAttention2 in transformers 4.46. Paper: arXiv 2307.08691. Axes: as CausalAttention.

    >>> LlamaFlashAttention2(8, 1, 2, 4).cost(b=1, s=3, t=3) == LlamaAttention(8, 1, 2, 4).cost(b=1, s=3, t=3)
    True
    """

    one_kernel = True
