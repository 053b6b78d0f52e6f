"""SUM: a Segment Anything Model with a task prompt (docs/method.md section 1).

The networks are `segment-anything`'s own classes; this module adds the task prompt and decodes prompts of
several images in one batch (SAM's `MaskDecoder.forward` takes one image).
"""

from copy import deepcopy

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

from sumlib.base.masks import longest_side_size, resize_longest_side, resized
from sumlib.data.tasks import Task
from sumlib.model.fast_decoder import ExactMaskDecoder, FastMaskDecoder

NUM_TASKS = len(Task)
"""Vectors of a task prompt: unspecified, salient object, entity, part."""


class Sum(nn.Module):
    """A promptable model: SAM plus one learned vector a task, added to the image embedding.

    The vectors start at zero, so an untrained ``Sum`` gives SAM's output bit for bit (docs/method.md §1).
    Another architecture overrides `encode`, `split`, `output_tokens`, `image_task` and `paint`.
    """

    architecture: str | None = None
    """File of sumlib/methods/ that holds a subclass; None: SAM's own. `save_sum` writes it down."""

    def __init__(self, sam: Sam, num_tasks: int = NUM_TASKS):
        super().__init__()
        self.sam = sam
        self.task_prompt = nn.Embedding(num_tasks, sam.prompt_encoder.embed_dim)
        nn.init.zeros_(self.task_prompt.weight)

    @property
    def task_vectors(self) -> Tensor:
        """The learned vectors of the tasks (tasks, C)."""
        return self.task_prompt.weight

    @property
    def decoder_parameters(self) -> list[nn.Parameter]:
        """Of SAM's prompt encoder, then of its mask decoder."""
        return [*self.sam.prompt_encoder.parameters(), *self.sam.mask_decoder.parameters()]

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) in pixels that an image takes up in the model's frame S x S, from the upper left on."""
        return longest_side_size(height, width, self.sam.image_encoder.img_size)

    def preprocess(self, image: np.ndarray) -> Tensor:
        """Image (H, W, 3) uint8 RGB -> the encoder's input (3, S, S) float32, on the model's device.

        Longest side resized to S, normalised, zeros added right and below: bit for bit what `SamPredictor`
        does.

        Raises:
            ValueError: not an RGB image of 8 bits.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"an image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}: convert it first"
            )
        side = self.sam.image_encoder.img_size
        frame = (
            np.array(image, order="C") if max(image.shape[:2]) == side else resize_longest_side(image, side)
        )
        return self.sam.preprocess(torch.from_numpy(frame).to(self.sam.device).permute(2, 0, 1).contiguous())

    def to_input_frame(self, xy: Tensor, original_size: tuple[int, int]) -> Tensor:
        """Points (..., 2) x, y or boxes (..., 4) XYXY in pixels of the image (H, W) -> of the input frame.

        Float32, as `SamPredictor`, scaled in double precision.
        """
        frame = self.input_size(*original_size)
        if frame == tuple(original_size):
            return xy.float()
        scale = [frame[1] / original_size[1], frame[0] / original_size[0]] * (xy.shape[-1] // 2)
        return (xy.double() * torch.tensor(scale, dtype=torch.double, device=xy.device)).float()

    def upscale(self, logits: Tensor, original_size: tuple[int, int]) -> Tensor:
        """Logits (N, K, 4h, 4w) of the padded frame -> (N, K, H, W) of the image.

        Bit for bit `Sam.postprocess_masks`. Steps that change nothing are left out: where all sizes are
        equal this is free.
        """
        side = self.sam.image_encoder.img_size
        height, width = self.input_size(*original_size)
        return resized(resized(logits, (side, side))[..., :height, :width], original_size)

    def encode(self, pixels: Tensor) -> Tensor:
        """Normalised, padded images (B, 3, S, S) -> image embeddings (B, C, h, w).

        Another architecture may give more channels, for `split` to take apart.
        """
        return self.sam.image_encoder(pixels)

    def split(self, embeddings: Tensor) -> tuple[Tensor, Tensor | None]:
        """What `encode` gave -> SAM's image embeddings (N, C, h, w), and what `paint` needs besides."""
        return embeddings, None

    def output_tokens(self, tasks: Tensor | None, count: int) -> Tensor:
        """The tokens that become the outputs of ``count`` prompts (count, 1 + 4, C): IoU, then masks."""
        decoder = self.sam.mask_decoder
        tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        return tokens.expand(count, -1, -1)

    def image_task(self, tasks: Tensor | None) -> Tensor | None:
        """Vectors (N, C) that are added to the image embeddings for task ids (N,)."""
        return None if tasks is None else self.task_prompt(tasks)

    def paint(
        self,
        decoder: ExactMaskDecoder,
        hidden: Tensor,
        features: Tensor,
        extra: Tensor | None,
        grid: tuple[int, int],
    ) -> Tensor:
        """Logits (N, 4, 4h, 4w) from the tokens behind the attention (N, T, C).

        ``features`` are what `ExactMaskDecoder.upscale` gave, ``extra`` is from `split`, ``grid`` is (h, w).
        """
        return decoder.paint(decoder.kernels(hidden), features, grid)

    def decode(
        self,
        embeddings: Tensor,
        *,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        mask_inputs: Tensor | None = None,
        tasks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Masks of N prompts of one kind, each with its own image embedding.

        ``embeddings`` (N, C, h, w); ``points`` (N, P, 2) x, y in pixels of the model's input frame, with
        ``labels`` (N, P) 1 foreground, 0 background, -1 padding; ``boxes`` (N, 4) XYXY; ``mask_inputs`` (N,
        1, 4h, 4w) logits; ``tasks`` (N,) task ids, or None for no task prompt. Returns logits (N, 4, 4h, 4w)
        and predicted IoU (N, 4): output 0 is the single-mask output, 1 to 3 are the multi-mask outputs.

        Raises:
            ValueError: points without labels, or labels without points.
        """
        if (points is None) != (labels is None):
            raise ValueError("points and labels belong together: give both or neither")
        n, device = len(embeddings), embeddings.device
        # Points and box apart, as SAM does: a matrix product's last bit depends on its number of rows.
        sparse = []
        if points is not None:
            if boxes is None:  # SAM adds one padding point where there is no box
                points, labels = F.pad(points, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=-1)
            sparse.append(self.embed_prompts(points, labels))
        if boxes is not None:
            sparse.append(
                self.embed_prompts(boxes.view(n, 2, 2), torch.tensor([[2, 3]], device=device).expand(n, -1))
            )
        tokens = (
            torch.cat(sparse, 1)
            if sparse
            else torch.zeros(n, 0, self.sam.prompt_encoder.embed_dim, device=device)
        )
        return self._decode(ExactMaskDecoder(self.sam), embeddings, tokens, mask_inputs, tasks)

    def decode_codes(
        self,
        embeddings: Tensor,
        xy: Tensor,
        codes: Tensor,
        *,
        mask_inputs: Tensor | None = None,
        tasks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`decode` for prompts of mixed kinds in one batch.

        ``xy`` (N, P, 2) and ``codes`` (N, P) as in SAM's ONNX export: 1 foreground point, 0 background point,
        2 and 3 the box's first and second corner, -1 padding. A prompt without a box has one padding, as SAM
        gives it. Faster than `decode` (`sumlib.model.fast_decoder`), and equal to it up to rounding.
        """
        fast, tokens = FastMaskDecoder(self.sam), self.embed_prompts(xy, codes)
        return self._decode(fast, embeddings, tokens, mask_inputs, tasks)

    def embed_prompts(self, xy: Tensor, codes: Tensor) -> Tensor:
        """(N, P, 2) and (N, P) as in `decode_codes` -> (N, P, C)."""
        prompt = self.sam.prompt_encoder
        weights = [e.weight for e in prompt.point_embeddings] + [prompt.not_a_point_embed.weight]
        table = torch.cat(weights)  # (5, C)
        codes = codes.long()
        # Coordinates in bf16 would be off by up to S / 512 pixels.
        with torch.autocast(xy.device.type, enabled=False):
            position = prompt.pe_layer.forward_with_coords(xy.float() + 0.5, prompt.input_image_size)
        return position * (codes >= 0)[..., None] + table[codes]  # code -1 is the table's last row

    def _decode(
        self,
        decoder: ExactMaskDecoder,
        embeddings: Tensor,
        prompts: Tensor,
        mask_inputs: Tensor | None,
        tasks: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """`MaskDecoder.predict_masks`, with an image embedding and a task of its own for each prompt."""
        image, extra = self.split(embeddings)
        tokens = torch.cat([self.output_tokens(tasks, len(image)), prompts], 1)
        hidden, rows = decoder.attend(image, tokens, mask_inputs, self.image_task(tasks))
        grid = image.shape[2:]
        logits = self.paint(decoder, hidden, decoder.upscale(rows, grid), extra, grid)
        return logits, decoder.iou(hidden)


def decoder_copy(model: Sum) -> Sum:
    """A copy of a model's prompt encoder and mask decoder alone, with its task prompt.

    Its ``encode`` hands embeddings through.
    """
    sam = model.sam
    copy = Sum(Sam(nn.Identity(), deepcopy(sam.prompt_encoder), deepcopy(sam.mask_decoder)))
    copy.task_prompt = deepcopy(model.task_prompt)
    return copy
