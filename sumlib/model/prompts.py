"""Prompts: points and boxes of N masks in one batch, as SAM's ONNX export codes them."""

from dataclasses import dataclass

import torch
from torch import Tensor

BACKGROUND, FOREGROUND, FIRST_CORNER, SECOND_CORNER, PADDING = 0, 1, 2, 3, -1
"""What a point of a prompt is. SAM adds one point of padding to a prompt that has no box."""


@dataclass(frozen=True)
class Prompts:
    """The prompts of N masks, each of P points; `Sum.decode_codes` takes ``xy`` and ``codes``."""

    xy: Tensor
    """(N, P, 2) x, y in pixels of the model's input frame, float32."""
    codes: Tensor
    """(N, P) int64, one of the constants of this module."""

    @classmethod
    def from_points(cls, points: Tensor, labels: Tensor | None = None) -> "Prompts":
        """Points (N, P, 2) with ``labels`` (N, P), 1 foreground and 0 background, by default all foreground.

        SAM's padding follows.

        >>> Prompts.from_points(torch.tensor([[[5, 7]]])).codes
        tensor([[ 1, -1]])
        """
        n, p = points.shape[:2]
        if labels is None:
            labels = torch.full((n, p), FOREGROUND, device=points.device)
        return cls(points[:, :0].float(), labels[:, :0].long()).add(points, labels)._padded()

    @classmethod
    def from_boxes(cls, boxes: Tensor, points: Tensor | None = None) -> "Prompts":
        """Boxes (N, 4) XYXY; foreground ``points`` (N, P, 2), where given, come first.

        >>> Prompts.from_boxes(torch.tensor([[1.0, 2.0, 8.0, 9.0]]))
        Prompts(xy=tensor([[[1., 2.],
                 [8., 9.]]]), codes=tensor([[2, 3]]))
        """
        n = len(boxes)
        codes = torch.tensor([[FIRST_CORNER, SECOND_CORNER]], device=boxes.device).expand(n, -1)
        corners = cls(boxes.view(n, 2, 2).float(), codes)
        if points is None:
            return corners
        first = torch.full(points.shape[:2], FOREGROUND, device=points.device)
        return cls(points.float(), first).add(corners.xy, corners.codes)

    @classmethod
    def nothing(cls, n: int, device: torch.device | str = "cpu") -> "Prompts":
        """``n`` prompts without point or box, for the mask prompt alone: one point of padding each."""
        return cls(
            torch.zeros(n, 0, 2, device=device), torch.zeros(n, 0, dtype=torch.long, device=device)
        )._padded()

    @classmethod
    def where(cls, condition: Tensor, first: "Prompts", second: "Prompts") -> "Prompts":
        """The ``first`` prompt where ``condition`` (N,) bool, else the ``second``; both have P points."""
        return cls(
            torch.where(condition[:, None, None], first.xy, second.xy),
            torch.where(condition[:, None], first.codes, second.codes),
        )

    def add(self, points: Tensor, labels: Tensor) -> "Prompts":
        """With one more point (N, 2) of each mask and its code (N,), or with Q more: (N, Q, 2) and (N, Q).

        >>> Prompts.nothing(1).add(torch.tensor([[3, 4]]), torch.tensor([BACKGROUND])).codes
        tensor([[-1,  0]])
        """
        if points.dim() == 2:
            points, labels = points[:, None], labels[:, None]
        return Prompts(torch.cat([self.xy, points.float()], 1), torch.cat([self.codes, labels.long()], 1))

    def to(self, device: torch.device | str) -> "Prompts":
        return Prompts(self.xy.to(device), self.codes.to(device))

    def __len__(self) -> int:
        return len(self.codes)

    def _padded(self) -> "Prompts":
        n, device = len(self), self.xy.device
        return self.add(torch.zeros(n, 2, device=device), torch.full((n,), PADDING, device=device))
