"""SUM Discrepancy-Uncer: certainty is how far two models or two decoders agree (docs/method.md section 7)."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from sumlib.base.masks import mask_box
from sumlib.methods.teacher import Teacher, three_masks
from sumlib.model.prompts import Prompts
from sumlib.model.rounds import best_of
from sumlib.model.sum import Sum, decoder_copy
from sumlib.train.batches import Batch
from sumlib.train.interactive import interactive_step
from sumlib.train.method import Method
from sumlib.uncertainty import certainty_map


class SecondDecoder(nn.Module):
    """A prompt encoder and mask decoder that start as the model's and learn from prompts of their own.

    They work on the model's embeddings.
    """

    def __init__(self, model: Sum):
        super().__init__()
        self.model = decoder_copy(model).requires_grad_(True)


class Discrepancy(Method):
    """SUM with another certainty.

    With `run.uncertainty` "discrepancy" the other is an EMA teacher, with "two-decoders" a `SecondDecoder`.
    """

    companion: Teacher | SecondDecoder

    def accompany(self, model: Sum) -> None:
        two = self.run.uncertainty == "two-decoders"
        self.companion = SecondDecoder(model) if two else Teacher(model, self.config.ema)

    def parameter_groups(self, model: Sum) -> list[dict]:
        groups = super().parameter_groups(model)
        if isinstance(self.companion, SecondDecoder):
            parameters = self.companion.model.decoder_parameters
            groups.append({"params": parameters, "lr": self.config.lr, "weight_decay": 0.0})
        return groups

    def before_step(self, model: Sum) -> None:
        if isinstance(self.companion, Teacher):
            self.companion.follow(model)

    def learn(
        self, model: Sum, batch: Batch, generator: torch.Generator, share: float = 1.0
    ) -> dict[str, float]:
        """`interactive_step` with the certainty of pseudo-labels from how far both agree on their boxes.

        A second decoder learns here too, from prompts of its own.
        """
        certainty_of = partial(self._certainty_of, model, batch, generator, share)
        return interactive_step(
            model, batch, self.run, self.config, generator, share, certainty_of=certainty_of
        )

    def _certainty_of(
        self, model: Sum, batch: Batch, generator: torch.Generator, share: float, embedding: Tensor
    ) -> Tensor:
        """Certainty (N, S, S) of a batch; ``embedding`` (B, C, h, w) is the model's."""
        certainty, pseudo, second = batch.certainty.clone(), batch.pseudo, self.companion
        if pseudo.any():
            own = embedding
            if isinstance(second, Teacher):
                own = second.encode(batch.pixels, self.config.bf16)
            certainty[pseudo] = agreement(
                (model, embedding),
                (second.model, own),
                batch.image[pseudo],
                batch.target[pseudo],
                self.config.bf16,
            )
        if isinstance(second, SecondDecoder):
            plain = replace(self.run, uncertainty_loss=False, uncertainty_sampling=False, task_prompt="none")
            own_batch = replace(batch, pixels=embedding)
            interactive_step(second.model, own_batch, plain, self.config, generator, share, rounds=1)
        return certainty


def agreement(
    first: tuple[Sum, Tensor], second: tuple[Sum, Tensor], image: Tensor, target: Tensor, bf16: bool = False
) -> Tensor:
    """Certainty (N, S, S) in [0, 1]: 1 - |difference of two models' probabilities| for each target's box.

    Each model comes with its embeddings (B, C, h, w), which ``image`` (N,) indexes; ``target`` (N, S, S)
    bool.
    """
    logits = (box_logits(model, embedding, image, target, bf16) for model, embedding in (first, second))
    return certainty_map(*logits)


@torch.no_grad()
def box_logits(model: Sum, embedding: Tensor, image: Tensor, target: Tensor, bf16: bool = False) -> Tensor:
    """Logits (N, S, S) for the box of each target (N, S, S) bool: the best of three outputs."""
    boxes = Prompts.from_boxes(mask_box(target))
    logits, _ = three_masks(model, embedding, image, boxes, target.shape[-1], bf16)
    best, _ = best_of(logits > 0, target)
    return logits[torch.arange(len(target), device=target.device), best]


METHOD = Discrepancy
