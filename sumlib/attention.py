"""Faster attention for SAM's mask decoder: the same numbers up to rounding, fewer operations.

The decoder's cross-attention runs between a handful of tokens and thousands of pixels, and projects every pixel. Since the
projections are linear, they can be folded into the tokens instead.
"""

from copy import copy

from segment_anything.modeling import TwoWayTransformer
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn


class FewTokens(nn.Module):
    """SAM's attention from few tokens to many pixels or back, with the pixels' projections folded into the tokens.

    q . (W x + b) = (W^T q) . x + q . b and sum_i a_i (W x_i + b) = W (sum_i a_i x_i) + b (weights a_i sum to one): so only T
    tokens a prompt are projected, not its thousands of pixels.
    """

    def __init__(self, attention: Attention):
        super().__init__()
        self.attention = attention
        self.heads, self.width = attention.num_heads, attention.internal_dim // attention.num_heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, Q, C), (B, K, C), (B, K, C) -> (B, Q, C); pixels may come with B = 1."""
        return self._tokens_look(q, k, v) if q.shape[1] <= k.shape[1] else self._pixels_look(q, k, v)

    def _tokens_look(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        a = self.attention
        query = self._heads(a.q_proj(q)) @ self._weight(a.k_proj) * self.width**-0.5  # (B, h, T, C); the keys' bias moves no softmax
        scores = (query.flatten(1, 2) @ k.transpose(1, 2)).softmax(-1)  # (B, h T, K)
        mixed = (scores @ v).unflatten(1, (self.heads, -1)) @ self._weight(a.v_proj).transpose(1, 2)  # (B, h, T, c)
        return a.out_proj(mixed.transpose(1, 2).flatten(2) + a.v_proj.bias)

    def _pixels_look(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        a = self.attention
        key = self._heads(a.k_proj(k)) * self.width**-0.5  # (B, h, T, c)
        bias = (key * a.q_proj.bias.view(self.heads, 1, self.width)).sum(-1, keepdim=True)  # (B, h, T, 1)
        scores = (key @ self._weight(a.q_proj)).flatten(1, 2) @ q.transpose(1, 2)  # (B, h T, Q)
        scores = (scores + bias.flatten(1, 2)).unflatten(1, (self.heads, -1)).softmax(2).flatten(1, 2)
        out = a.out_proj.weight.unflatten(1, (self.heads, self.width)).permute(1, 2, 0)  # (h, c, C)
        value = (self._heads(a.v_proj(v)) @ out).flatten(1, 2)  # (B, h T, C)
        return scores.transpose(1, 2) @ value + a.out_proj.bias

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, self.width)).transpose(1, 2)  # (B, h, T, c)

    def _weight(self, projection: nn.Linear) -> Tensor:
        return projection.weight.unflatten(0, (self.heads, self.width))  # (h, c, C)


def with_few_tokens(transformer: TwoWayTransformer) -> TwoWayTransformer:
    """The transformer with `FewTokens` for its cross-attention; it holds the same modules and parameters, not copies."""
    fast = _twin(transformer)
    fast.layers = nn.ModuleList([_twin(layer) for layer in transformer.layers])
    for layer in fast.layers:
        layer.cross_attn_token_to_image = FewTokens(layer.cross_attn_token_to_image)
        layer.cross_attn_image_to_token = FewTokens(layer.cross_attn_image_to_token)
    fast.final_attn_token_to_image = FewTokens(transformer.final_attn_token_to_image)
    return fast


def _twin(module: nn.Module) -> nn.Module:
    """Another module of the same parts, which can be exchanged without touching the first one."""
    twin = copy(module)
    twin._modules = copy(module._modules)
    return twin
