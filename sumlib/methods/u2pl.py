"""U2PL's contrastive term on image embeddings, for promptable segmentation (docs/method.md section 7)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sumlib.model.sum import Sum
from sumlib.train.batches import Batch
from sumlib.train.interactive import interactive_step
from sumlib.train.method import Method


class U2pl(Method):
    """SUM plus `run.contrast` times the contrastive term on pseudo-labels."""

    def learn(
        self, model: Sum, batch: Batch, generator: torch.Generator, share: float = 1.0
    ) -> dict[str, float]:
        return interactive_step(model, batch, self.run, self.config, generator, share, term=self.add_contrast)

    def add_contrast(self, leaf: Tensor, batch: Batch, generator: torch.Generator, share: float) -> None:
        """Add the gradient of the term to that of the embeddings ``leaf`` (B, C, h, w)."""
        pseudo = batch.pseudo
        if pseudo.any():
            loss = contrastive_loss(
                leaf,
                batch.image[pseudo],
                batch.target[pseudo],
                batch.certainty[pseudo],
                generator=generator,
                theta=self.config.theta,
                anchors=self.config.u2pl.anchors,
                negatives=self.config.u2pl.negatives,
                temperature=self.config.u2pl.temperature,
            )
            (self.run.contrast * share * loss).backward()


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
    """Pull the certain pixels of a mask together and push them from what lies outside.

    U2PL's parts, with a mask in place of a class: anchors are certain foreground pixels, the positive is
    their mean (no gradient), negatives are background pixels, unreliable ones among them, which is its point.
    The mean is over the masks that have both.

    Args:
        embedding: (B, C, h, w), with gradient.
        image: (N,) index into it.
        target: (N, S, S) bool.
        certainty: (N, S, S) in [0, 1]; both are averaged over the embedding's cells.
        theta: certainty above which foreground is certain.
        anchors, negatives: drawn for each mask, with replacement.

    Returns:
        scalar; zero where no mask has both.
    """
    grid = embedding.shape[-2:]
    cells = lambda m: F.adaptive_avg_pool2d(m.float()[:, None], grid)[:, 0].flatten(1)  # (N, h w)
    share, sure = cells(target), cells(certainty)
    foreground, background = (share > 0.5) & (sure > theta), share <= 0.5
    usable = foreground.any(1) & background.any(1)
    if not usable.any():
        return embedding.sum() * 0
    foreground, background = foreground[usable].float(), background[usable].float()
    features = F.normalize(embedding.float().flatten(2), dim=1).index_select(0, image[usable])  # (N, C, h w)
    positive = F.normalize((features.detach() * foreground[:, None]).sum(2), dim=1)  # (N, C)
    at, against = _drawn(foreground, anchors, generator), _drawn(background, negatives, generator)
    anchor, negative = (
        features @ at.transpose(1, 2),
        features @ against.transpose(1, 2),
    )  # (N, C, A), (N, C, K)
    attract = (positive[:, None] @ anchor) / temperature  # (N, 1, A)
    repel = (negative.transpose(1, 2) @ anchor) / temperature  # (N, K, A)
    return -torch.log_softmax(torch.cat([attract, repel], 1), 1)[:, 0].mean()


def _drawn(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` cells drawn by ``weights`` (N, h w), as rows of ones and zeros (N, count, h w).

    A product with them has an exact order of sums.
    """
    cells = torch.multinomial(weights.cpu(), count, replacement=True, generator=generator).to(weights.device)
    return F.one_hot(cells, weights.shape[1]).to(weights)


METHOD = U2pl
