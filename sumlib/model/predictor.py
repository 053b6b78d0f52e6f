"""SAM's interactive predictor with the task prompt, for every architecture, and the certainty of masks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from segment_anything import SamPredictor
from torch import Tensor

from sumlib.base.masks import mask_box
from sumlib.model.sum import Sum
from sumlib.sampler import first_click
from sumlib.uncertainty import certainty_map


class Refining(Protocol):
    """What `SumPredictor` asks of a refinement module; `sumlib.refiner.Refiner` is one."""

    def embed(self, embeddings: Tensor, pixels: Callable[[], Tensor]) -> Tensor:
        """What it looks at (1, C, h, w); ``pixels()`` is the padded, normalised image (1, 3, S, S)."""

    def __call__(
        self, embeddings: Tensor, logits: Tensor, boxes: Tensor, points: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Refined logits (K, 4h, 4w) and scores (K,) of masks: see `sumlib.refiner.Refiner.forward`."""


class SumPredictor(SamPredictor):
    """SAM's predictor with the task prompt: ``predict(..., task=1)``; all else is as in `SamPredictor`.

    It runs every architecture of a `Sum`, HQ-SAM's, too. What it does for a model in SAM's own is SAM's own
    code, so that without a task the output is SAM's bit for bit.

    Args:
        model: in evaluation mode, on the device to compute on.
        task: id of the task that `predict` and `predict_torch` take if they are given none.
        refiner: a refinement module for the certainty of masks, `sumlib.refiner.load_refiner(...)[0]`. It
            belongs to the model whose masks it learned to refine.

    Raises:
        ValueError: no such task, or a model of another architecture than SAM's in training mode.
    """

    def __init__(self, model: Sum, *, task: int | None = None, refiner: Refining | None = None):
        if model.architecture and model.training:
            raise ValueError(
                f"the {model.architecture} model is in training mode, where its masks are others: "
                "call model.eval() first"
            )
        super().__init__(model.sam)
        self.sum, self.task, self.refiner = model, None, refiner
        self.task = self._checked(task)

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Encode an image (H, W, 3) uint8, whose channels are "RGB" or "BGR", for `predict`.

        Raises:
            ValueError: another shape or type, or another format.
        """
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"no image format {image_format!r}; known are RGB and BGR")
        super().set_image(require_image(image), image_format)

    @torch.no_grad()
    def set_torch_image(self, transformed_image: Tensor, original_image_size: tuple[int, int]) -> None:
        """Encode an image (1, 3, h, w), RGB values 0 to 255, whose longest side is the model's.

        ``original_image_size`` is (H, W) of the image that it was scaled from.

        Raises:
            ValueError: another shape.
        """
        shape, side = tuple(transformed_image.shape), self.model.image_encoder.img_size
        if len(shape) != 4 or shape[:2] != (1, 3) or max(shape[2:]) != side:
            raise ValueError(f"the image must be (1, 3, h, w) with a longest side of {side}, got {shape}")
        self.reset_image()
        self.original_size, self.input_size = tuple(original_image_size), shape[2:]
        pixels = self.model.preprocess(transformed_image)
        self.features = self.sum.encode(pixels)
        if self.refiner is not None:
            self._seen = self.refiner.embed(self.sum.split(self.features)[0], lambda: pixels)
        self.is_image_set = True

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        *,
        task: int | None = None,
        return_uncertainty: bool = False,
    ) -> tuple[np.ndarray, ...]:
        """`SamPredictor.predict` with the task id ``task``, by default the predictor's.

        SUM is trained to get the task in the first round only. With ``return_uncertainty`` a fourth array
        follows: the certainty (K, H, W) float32 of each pixel of the K masks. With a refinement module it is
        c = 1 - |sigmoid(s) - sigmoid(r)| of the model's and the refined logits (docs/method.md section 3),
        else the model's own confidence |2 sigmoid(s) - 1|. Uncertainty is 1 - certainty.

        Args:
            point_coords: (P, 2) x, y in pixels of the image.
            point_labels: (P,), 1 inside the object, 0 outside; -1 is no point.
            box: (4,) x0, y0, x1, y1 in pixels of the image.
            mask_input: (1, 4h, 4w) logits, as the third array of an earlier call.

        Returns:
            masks (K, H, W) bool, or their logits, scores (K,) and low-resolution logits (K, 4h, 4w).

        Raises:
            ValueError: no such task, or a prompt of another shape.
            RuntimeError: no image is set.
        """
        points, labels = _checked_points(point_coords, point_labels)
        prompts = {
            "point_coords": points,
            "point_labels": labels,
            "box": _checked_box(box),
            "mask_input": _checked_mask(mask_input, self.model.prompt_encoder.mask_input_size),
            "multimask_output": multimask_output,
        }
        with self._with(self.task if task is None else self._checked(task)):
            if not return_uncertainty:
                return super().predict(**prompts, return_logits=return_logits)
            logits, scores, low = super().predict(**prompts, return_logits=True)
        click = None if points is None else next(iter(points[labels == 1]), None)
        certainty = self._certainty(torch.from_numpy(logits), torch.from_numpy(low), click)
        masks = logits if return_logits else logits > self.model.mask_threshold
        return masks, scores, low, certainty.cpu().numpy()

    @torch.no_grad()
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`SamPredictor.predict_torch`: N prompts at once, in pixels of the input frame, with the task that
        the predictor was made with.
        """
        if not self.is_image_set:
            raise RuntimeError("an image must be set: call set_image first")
        given = (point_coords, point_labels, boxes, mask_input)
        if self.sum.architecture:
            return self._decode(*given, multimask_output, return_logits)
        plain = self.features
        if self.task is not None:
            self.features = plain + self.sum.task_prompt.weight[self.task][:, None, None]
        try:
            return super().predict_torch(*given, multimask_output, return_logits)
        finally:
            self.features = plain

    def get_image_embedding(self) -> Tensor:
        """The image embedding (1, C, h, w) as `Sum.encode` gave it, for `Sum.decode`.

        In HQ-SAM's architecture it has 3 C channels (`sumlib.methods.hq_sam`).
        """
        return super().get_image_embedding()

    def _decode(
        self,
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        mask_input: Tensor | None,
        multimask_output: bool,
        return_logits: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`predict_torch` by `Sum.decode`, for other architectures than SAM's."""
        n = next((len(given) for given in (points, boxes, mask_input) if given is not None), 1)
        low, scores = self.sum.decode(
            self.features.expand(n, -1, -1, -1),
            points=points,
            labels=labels,
            boxes=boxes,
            mask_inputs=mask_input,
            tasks=None if self.task is None else torch.full((n,), self.task, device=self.device),
        )
        kept = slice(1, None) if multimask_output else slice(0, 1)
        low, scores = low[:, kept], scores[:, kept]
        masks = self._full_size(low)
        return masks if return_logits else masks > self.model.mask_threshold, scores, low

    def _full_size(self, low: Tensor) -> Tensor:
        """Logits (N, K, 4h, 4w) -> (N, K, H, W) of the image."""
        return self.model.postprocess_masks(low, self.input_size, self.original_size)

    @torch.no_grad()
    def _certainty(self, logits: Tensor, low: Tensor, click: np.ndarray | None) -> Tensor:
        """Certainty (K, H, W) float32 of masks with ``logits`` (K, H, W) and ``low`` (K, 4h, 4w).

        ``click`` (x, y) is the point that produced them; None: the deepest point of each mask stands for it.
        """
        logits = logits.to(self.device)
        if self.refiner is None:
            return (2 * logits.sigmoid() - 1).abs()
        masks = logits > self.model.mask_threshold
        boxes = mask_box(masks)
        points = boxes.view(-1, 2, 2).mean(1)
        some = masks.flatten(1).any(1)
        if click is not None:
            points[:] = torch.as_tensor(click, dtype=torch.float, device=self.device)
        elif some.any():
            points[some] = first_click(masks[some]).to(points)
        framed = lambda xy: self.sum.to_input_frame(xy, self.original_size)
        refined, _ = self.refiner(
            self._seen.expand(len(low), -1, -1, -1), low.to(self.device), framed(boxes), framed(points)
        )
        return certainty_map(logits, self._full_size(refined[:, None].float())[:, 0])

    def _checked(self, task: int | None) -> int | None:
        known = len(self.sum.task_vectors)
        if task is not None and task not in range(known):
            raise ValueError(f"no task {task!r}: known are 0 to {known - 1}")
        return task

    @contextmanager
    def _with(self, task: int | None) -> Iterator[None]:
        """Inside, ``task`` is the predictor's."""
        own, self.task = self.task, task
        try:
            yield
        finally:
            self.task = own


def require_image(image: np.ndarray) -> np.ndarray:
    """The image, if it is an array (H, W, 3) uint8 of at least one pixel; else ValueError."""
    found = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"an image must be an array (H, W, 3) uint8, got {found}: convert it first")
    if image.dtype != np.uint8:
        raise ValueError(
            f"an image must be (H, W, 3) uint8 with values 0 to 255, got {found}: convert it first, floats "
            "in [0, 1] with (255 * image).round().astype(np.uint8)"
        )
    return image


def _checked_points(points: ArrayLike | None, labels: ArrayLike | None) -> tuple:
    """Points (P, 2) float64 and labels (P,) int64, or None twice."""
    if (points is None) != (labels is None):
        raise ValueError("point_coords and point_labels belong together: give both or neither")
    if points is None:
        return None, None
    points, labels = _numbers(points, "point_coords"), _numbers(labels, "point_labels")
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"point_coords must be (P, 2) x, y in pixels, got {points.shape}")
    if labels.shape != points.shape[:1]:
        raise ValueError(f"point_labels must be ({len(points)},), one a point, got {labels.shape}")
    if not np.isin(labels, (-1, 0, 1)).all():
        raise ValueError(f"point_labels are 1 inside, 0 outside, -1 for no point, got {labels.tolist()}")
    return points, labels.astype(np.int64)


def _checked_box(box: ArrayLike | None) -> np.ndarray | None:
    """(4,) float64."""
    if box is None:
        return None
    box = _numbers(box, "box")
    if box.size != 4:
        raise ValueError(
            f"box must be (4,) x0, y0, x1, y1 in pixels, got {box.shape}; predict_torch takes several boxes"
        )
    box = box.reshape(4)
    if (box[2:] < box[:2]).any():
        raise ValueError(f"box must be x0, y0, x1, y1 with x0 <= x1 and y0 <= y1, got {box.tolist()}")
    return box


def _checked_mask(logits: ArrayLike | None, size: tuple[int, int]) -> np.ndarray | None:
    """(1, *size) float32."""
    if logits is None:
        return None
    logits = _numbers(logits, "mask_input")
    if logits.shape != (1, *size):
        raise ValueError(
            f"mask_input must be {(1, *size)}, low-resolution logits of one mask as the third array of an "
            f"earlier call (low[:1]), got {logits.shape}"
        )
    return logits.astype(np.float32)


def _numbers(values: ArrayLike, name: str) -> np.ndarray:
    """The values as float64, all finite."""
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be an array or list of numbers, got {values!r}") from None
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} holds values that are not finite")
    return numbers
