"""LoRA on the query and value projections of both towers of a CLIP, or of one, as DataDream's classifier has it.

Query and value of every self-attention get ``alpha / rank * B A`` on their weights, with dropout on the input of A;
key, output projection, everything else and the logit scale stay frozen (loralib's MergedLinear with
``enable_lora=[True, False, True]``; 983,040 parameters for ViT-B/16 at rank 16).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamset.core.errors import InputError


class LoraAttention(nn.Module):
    """A self-attention whose query and value weights are adapted; called as the ``nn.MultiheadAttention`` it wraps.

    Dropout on the input of the LoRA cannot be written as a change of weights, so training computes the low-rank
    path apart; evaluation uses the merged weights.

    Args:
        attention: a batch-first self-attention with fused projections, width d.
        rank: of each of the two updates.
        alpha: the updates are scaled by ``alpha / rank``.
        dropout: on the input of the updates, 0..1.
    """

    def __init__(self, attention: nn.MultiheadAttention, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        if attention.in_proj_weight is None or not attention.batch_first:
            raise InputError(
                "clip_lora needs batch-first attention with one fused projection for query, key and value."
            )
        width = attention.embed_dim
        self.attention = attention
        self.scaling = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.A = nn.Parameter(torch.empty(2 * rank, width))  # rows of query, then of value
        self.B = nn.Parameter(torch.zeros(2, width, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def merged(self) -> Tensor:
        """The fused projection (3 d, d) with the updates added to its query and value rows."""
        query, value = self.scaling * self.B @ self.A.view(2, -1, self.A.shape[1])
        return self.attention.in_proj_weight + torch.cat([query, torch.zeros_like(query), value])

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Attention over ``query`` (n, length, d), which is also key and value."""
        x, bias = query, self.attention.in_proj_bias
        if self.training:
            rows = x.flatten(0, 1)
            q, k, v = F.linear(rows, self.attention.in_proj_weight, bias).chunk(3, -1)
            low_q, low_v = F.linear(self.dropout(rows), self.A).chunk(2, -1)
            q = torch.addmm(q, low_q, self.B[0].T, alpha=self.scaling)
            v = torch.addmm(v, low_v, self.B[1].T, alpha=self.scaling)
        else:
            q, k, v = F.linear(x, self.merged(), bias).chunk(3, -1)
        split = (*x.shape[:2], self.attention.num_heads, -1)
        q, k, v = (part.reshape(split).transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        out: Tensor = self.attention.out_proj(mixed.transpose(1, 2).flatten(2))
        return out, None


def adapt(model: nn.Module, rank: int, alpha: float, dropout: float, towers: str = "both") -> int:
    """Put a LoRA on every self-attention of both towers, or of one; the rest is frozen.

    Args:
        model: an open_clip model.
        rank: of the two updates of each self-attention.
        alpha: the updates are scaled by ``alpha / rank``.
        dropout: on the input of the updates, 0..1.
        towers: ``both``, ``image`` or ``text``.

    Returns:
        The number of trainable parameters.

    Raises:
        InputError: such a tower has no self-attention of a transformer, as the image tower of CLIP-RN50.
    """
    model.requires_grad_(False)
    towers_of: dict[str, Any] = {
        "image": model.visual,
        "text": getattr(model, "text", getattr(model, "transformer", None)),
    }
    blocks = {name: _blocks(tower) for name, tower in towers_of.items()}
    wanted = list(blocks) if towers == "both" else [towers]
    for name in wanted:
        if not blocks[name]:
            other = next((f"set clip_lora.towers to {other}, or " for other in blocks if blocks[other]), "")
            raise InputError(
                f"this CLIP's {name} tower has no attention that clip_lora can adapt; {other}choose a ViT of open_clip."
            )
    chosen = {block for name in wanted for block in blocks[name]}
    # In the order of the model, in which they take random numbers.
    for block in [block for block in _blocks(model) if block in chosen]:
        block.attn = LoraAttention(block.attn, rank, alpha, dropout)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _blocks(part: Any) -> list[Any]:
    """Return the transformer blocks of a part of a model, in its order."""
    from open_clip.transformer import ResidualAttentionBlock

    modules = part.modules() if isinstance(part, nn.Module) else ()
    return [module for module in modules if isinstance(module, ResidualAttentionBlock)]


def checkpoint_text(model: Any) -> None:
    """Compute the text tower's activations again in the backward pass instead of keeping them."""
    tower = getattr(model, "text", model)
    tower.transformer.grad_checkpointing = True


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add every LoRA to the weights it adapts, and leave a stock open_clip model."""
    for block in list(model.modules()):
        attention = getattr(block, "attn", None)
        if isinstance(attention, LoraAttention):
            attention.attention.in_proj_weight.copy_(attention.merged())
            block.attn = attention.attention
