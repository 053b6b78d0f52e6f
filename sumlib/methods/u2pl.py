"""U2PL's contrastive term on image embeddings, for promptable segmentation (METHOD section 7)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(
    embedding: Tensor,
    image: Tensor,
    target: Tensor,
    certainty: Tensor,
    *,
    generator: torch.Generator,
    theta: float = 0.6,
    anchors: int = 32,
    negatives: int = 64,
    temperature: float = 0.5,
) -> Tensor:
    """Pull the certain pixels of a mask together and push them from what lies outside; the mean over the masks that have both.

    U2PL's parts, with a mask in place of a class: anchors are certain foreground pixels, the positive is their mean (no gradient), negatives
    are background pixels, unreliable ones among them, which is its point.

    Args:
        embedding: (B, C, h, w), with gradient.
        image: (N,) index into it.
        target: (N, S, S) bool, ``certainty`` (N, S, S) in [0, 1]; both are averaged over the embedding's cells.
        theta: certainty above which foreground is certain.
        anchors, negatives: drawn for each mask, with replacement.

    Returns:
        scalar; zero where no mask has both.
    """
    grid = embedding.shape[-2:]
    share, sure = (
        F.adaptive_avg_pool2d(m.float()[:, None], grid)[:, 0].flatten(1) for m in (target, certainty)
    )  # (N, h w)
    foreground, background = (share > 0.5) & (sure > theta), share <= 0.5
    usable = foreground.any(1) & background.any(1)
    if not usable.any():
        return embedding.sum() * 0
    foreground, background = foreground[usable].float(), background[usable].float()
    features = F.normalize(embedding.float().flatten(2), dim=1).index_select(0, image[usable])  # (N, C, h w)
    positive = F.normalize((features.detach() * foreground[:, None]).sum(2), dim=1)  # (N, C)
    at, against = (
        _drawn(weights, count, generator)
        for weights, count in ((foreground, anchors), (background, negatives))
    )
    anchor, negative = (
        features @ at.transpose(1, 2),
        features @ against.transpose(1, 2),
    )  # (N, C, A), (N, C, K)
    attract = (positive[:, None] @ anchor) / temperature  # (N, 1, A)
    repel = (negative.transpose(1, 2) @ anchor) / temperature  # (N, K, A)
    return -torch.log_softmax(torch.cat([attract, repel], 1), 1)[:, 0].mean()


def _drawn(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` cells drawn by ``weights`` (N, h w) as rows of ones and zeros (N, count, h w): a product with them has an exact order of sums."""
    chosen = torch.multinomial(weights.cpu(), count, replacement=True, generator=generator)
    return F.one_hot(chosen, weights.shape[1]).to(weights)
