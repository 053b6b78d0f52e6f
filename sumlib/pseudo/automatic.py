"""SAM's automatic masks (docs/method.md section 2): those of `SamAutomaticMaskGenerator`, with their logits.

Three things make it several times faster and change results by rounding errors only: the prompts of an image
share its embedding, the decoder is the faster one (`sumlib.model.fast_decoder`), and masks are painted only
for prompts with an output whose predicted IoU passes.
"""

import numpy as np
import torch
from segment_anything.utils.amg import (
    MaskData,
    batched_mask_to_box,
    build_point_grid,
    calculate_stability_score,
)
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms

from sumlib.config.params import PseudoLabelConfig
from sumlib.model.fast_decoder import FastMaskDecoder
from sumlib.model.sum import Sum

STEPS = ("candidates", "predicted_iou", "stability", "area", "nms")
"""What is counted: all outputs of all points, then those that passed each filter so far, in this order."""
BINS = 50  # of the histograms, over [0, 1]


class Tally:
    """Counts of the candidates that passed each filter, and histograms of the scores that decide."""

    def __init__(self):
        self.images, self.counts = 0, dict.fromkeys(STEPS, 0)
        self.histograms = {name: np.zeros(BINS, np.int64) for name in ("predicted_iou", "stability")}

    def add(self, step: str, count: int) -> None:
        self.counts[step] += count

    def observe(self, name: str, values: Tensor) -> None:
        """Count ``values``, of the candidates before the filter ``name``; NaN (an empty mask) counts as 0."""
        self.histograms[name] += np.histogram(values.nan_to_num(0).clamp(0, 1).cpu(), BINS, (0, 1))[0]

    def merge(self, other: dict) -> None:
        self.images += other["images"]
        for step in STEPS:
            self.counts[step] += other["counts"][step]
        for name, histogram in self.histograms.items():
            histogram += np.array(other["histograms"][name])

    def record(self) -> dict:
        """JSON-ready."""
        return {
            "images": self.images,
            "counts": self.counts,
            "histograms": {k: v.tolist() for k, v in self.histograms.items()},
        }


class AutomaticMasks:
    """Automatic masks of image after image; `tally` counts what the filters dropped.

    ``batch`` is the number of points decoded at once, by default as many as keep memory bounded.
    """

    def __init__(self, model: Sum, config: PseudoLabelConfig, batch: int | None = None):
        self.model, self.config, self.batch, self.tally = model, config, batch, Tally()

    @torch.no_grad()
    def __call__(self, embedding: Tensor, size: tuple[int, int]) -> MaskData:
        """The masks of an image of ``size`` (H, W) with ``embedding`` (1, C, h, w), best predicted IoU first.

        "low" (M, 4h, 4w) logits, "masks" (M, H, W) bool, "points" (M, 2) x, y and "boxes" (M, 4) XYXY in
        pixels of the image, "iou_preds", "stability_score", "area" (M,). As SAM's, but without empty masks
        and those of ``config.max_area_fraction`` of the image or more.
        """
        points = torch.from_numpy(build_point_grid(self.config.points_per_side) * (size[1], size[0])).to(
            embedding.device
        )
        batch = self.batch or max(
            1, 2**22 // embedding.numel()
        )  # 128 points for the micro model, 4 for SAM's
        data = MaskData()
        for chunk in points.split(batch):
            data.cat(self._candidates(embedding, chunk, size))
        data.filter(
            batched_nms(
                data["boxes"], data["iou_preds"], torch.zeros(len(data["boxes"])), self.config.nms_thresh
            )
        )
        self.tally.add("nms", len(data["low"]))
        self.tally.images += 1
        return data

    def _candidates(self, embedding: Tensor, points: Tensor, size: tuple[int, int]) -> MaskData:
        """The masks of some points (P, 2) that pass the filters, before non-maximum suppression."""
        config, tally = self.config, self.tally
        data = self._decode(embedding, points, size)
        logits = self.model.upscale(data["low"][:, None], size)[:, 0]  # (N, H, W)
        data["stability_score"] = calculate_stability_score(
            logits, self.model.sam.mask_threshold, config.stability_offset
        )
        data["masks"] = logits > self.model.sam.mask_threshold
        tally.observe("stability", data["stability_score"])
        if config.stability_thresh > 0:
            data.filter(data["stability_score"] >= config.stability_thresh)
        tally.add("stability", len(data["low"]))
        data["area"] = data["masks"].flatten(1).sum(1)
        data.filter((data["area"] > 0) & (data["area"] < config.max_area_fraction * size[0] * size[1]))
        tally.add("area", len(data["low"]))
        data["boxes"] = batched_mask_to_box(data["masks"]).float()
        return MaskData(**{key: value.cpu() for key, value in data.items()})

    def _decode(self, embedding: Tensor, points: Tensor, size: tuple[int, int]) -> MaskData:
        """The multi-mask outputs of points (P, 2) that pass the predicted-IoU filter, point by point."""
        model, least = self.model, self.config.pred_iou_thresh
        decoder, grid = FastMaskDecoder(model.sam), embedding.shape[2:]
        xy = F.pad(model.to_input_frame(points, size)[:, None], (0, 0, 0, 1))  # a point and SAM's padding
        codes = torch.tensor([[1, -1]], device=xy.device).expand(len(xy), -1)
        tokens = torch.cat([model.output_tokens(None, len(xy)), model.embed_prompts(xy, codes)], 1)
        hidden, rows = decoder.attend(embedding, tokens)  # (P, 7, C), (P, h w, C)
        scores = decoder.iou(hidden)[:, 1:]  # (P, 3)
        keep = scores > least if least > 0 else torch.ones_like(scores, dtype=torch.bool)
        self.tally.add("candidates", scores.numel())
        self.tally.observe("predicted_iou", scores)
        self.tally.add("predicted_iou", int(keep.sum()))
        some = keep.any(1)
        kernels, features = decoder.kernels(hidden[some], (1, 2, 3)), decoder.upscale(rows[some], grid)
        low = decoder.paint(kernels, features, grid)[keep[some]]  # (N, 4h, 4w)
        return MaskData(
            low=low, iou_preds=scores[keep], points=points.float()[:, None].expand(-1, 3, -1)[keep]
        )
