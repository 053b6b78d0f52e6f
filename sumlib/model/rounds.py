"""Interactive rounds: a prompt, a mask, one more click where it is wrong, and so on.

Training, pre-training, evaluation and the gate differ in how the decoder is called, which output they take
and where the next click comes from; those are arguments, or what they do with a `Round`.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sumlib.metrics import mask_iou
from sumlib.model.prompts import Prompts

Decode = Callable[[Prompts, Tensor | None, int], tuple[Tensor, Tensor]]
"""The decoder's four outputs for prompts, mask prompts (N, 1, 4h, 4w) or None, and the round, from 0.

Those are logits (N, 4, 4h, 4w) and predicted IoU (N, 4).
"""


class Round:
    """One round of N masks."""

    def __init__(self, number: int, prompts: Prompts, logits: Tensor, score: Tensor, several: bool):
        self.number = number
        """From 0."""
        self.prompts = prompts
        self.all_logits, self.all_scores = logits, score
        """(N, 4, 4h, 4w) and (N, 4): the decoder's outputs, first the single-mask one."""
        offered = slice(1, None) if several else slice(0, 1)
        self.logits, self.score = logits[:, offered], score[:, offered]
        """(N, K, 4h, 4w) and (N, K): what the answer is taken from: the K = 3 others, or the first."""
        self.mask: Tensor | None = None
        """(N, H, W) bool, the answer, once it is taken."""
        self.shown: Tensor | None = None
        """(N, 1, 4h, 4w), the answer's logits: the next round's mask prompt."""

    def take(self, output: Tensor, mask: Tensor) -> None:
        """Take ``output`` (N,), numbers among the K offered, as the answer.

        ``mask`` (N, H, W) bool is the answer as the next click sees it, at any size.
        """
        rows = torch.arange(len(output), device=output.device)
        self.shown, self.mask = self.logits[rows, output].detach()[:, None], mask


def interactive_rounds(
    decode: Decode,
    prompts: Prompts,
    rounds: int,
    next_prompts: Callable[[Round], Prompts],
    *,
    mask_inputs: Tensor | None = None,
    several: bool = True,
) -> Iterator[Round]:
    """Yield ``rounds`` rounds that start from ``prompts``; the caller must `Round.take` an answer in each.

    In the first round the answer is one of three outputs, or with ``several`` false the single-mask output,
    as in all later rounds. ``next_prompts`` gives the prompts of the next round from a round with its answer;
    it is not asked after the last. ``mask_inputs`` (N, 1, 4h, 4w) is a mask prompt for the first round. What
    is shown to the next round is detached: a caller that back-propagates each round frees its graph.
    """
    shown = mask_inputs
    for number in range(rounds):
        turn = Round(number, prompts, *decode(prompts, shown, number), several and number == 0)
        yield turn
        shown = turn.shown
        if number + 1 < rounds:
            prompts = next_prompts(turn)


def best_of(masks: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Which of K masks (N, K, H, W) bool agrees best with ``target`` (N, H, W) bool.

    Returns its number (N,), and the IoU of each (N, K).

    >>> masks = torch.tensor([[[[True, False]], [[True, True]]]])
    >>> best_of(masks, torch.tensor([[[True, True]]]))
    (tensor([1]), tensor([[0.5000, 1.0000]]))
    """
    iou = torch.stack([mask_iou(masks[:, k], target) for k in range(masks.shape[1])], 1)
    return iou.argmax(1), iou
