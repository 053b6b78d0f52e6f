"""SUM: a Segment Anything Model with a task prompt (METHOD section 1).

The networks are `segment-anything`'s own classes; this module adds the task prompt and decodes prompts of several images in one
batch (SAM's `MaskDecoder.forward` takes one image).
"""

from copy import deepcopy

import numpy as np
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

from sumlib.base.masks import longest_side_size, resize_longest_side, resized
from sumlib.methods.hq_sam import HqHead
from sumlib.model.fast_decoder import attend, embed_masks, mask_features, unfold

NUM_TASKS = 4
"""0 unspecified, 1 salient object, 2 entity, 3 part."""


class Sum(nn.Module):
    """A promptable model: SAM plus one learned vector a task, added to the image embedding.

    The vectors start at zero, so an untrained ``Sum`` gives SAM's output bit for bit (METHOD section 1). With ``hq`` it has HQ-SAM's
    architecture (`sumlib.methods.hq_sam`): embeddings carry the fused features in further channels, in training all outputs are the HQ mask's,
    else it is added to each of SAM's; task vectors are then those of the HQ head.
    """

    def __init__(self, sam: Sam, num_tasks: int = NUM_TASKS, hq: bool = False):
        super().__init__()
        self.sam = sam
        self.hq = HqHead(sam, num_tasks) if hq else None
        self.task_prompt = nn.Embedding(num_tasks, sam.prompt_encoder.embed_dim)
        nn.init.zeros_(self.task_prompt.weight)

    @property
    def decoder_parameters(self) -> list[nn.Parameter]:
        """Of SAM's prompt encoder, then of its mask decoder."""
        return [*self.sam.prompt_encoder.parameters(), *self.sam.mask_decoder.parameters()]

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) in pixels that an image takes up in the model's input frame S x S, from its upper left corner on."""
        return longest_side_size(height, width, self.sam.image_encoder.img_size)

    def preprocess(self, image: np.ndarray) -> Tensor:
        """Image (H, W, 3) uint8 RGB -> the encoder's input (3, S, S) float32, on the model's device.

        Longest side resized to S, normalised, zeros added right and below: bit for bit what `SamPredictor` does.

        Raises:
            ValueError: not an RGB image of 8 bits.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"an image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}: convert it first"
            )
        side = self.sam.image_encoder.img_size
        resized = (
            np.array(image, order="C") if max(image.shape[:2]) == side else resize_longest_side(image, side)
        )
        return self.sam.preprocess(
            torch.from_numpy(resized).to(self.sam.device).permute(2, 0, 1).contiguous()
        )

    def to_input_frame(self, xy: Tensor, original_size: tuple[int, int]) -> Tensor:
        """Points (..., 2) x, y or boxes (..., 4) XYXY in pixels of the image (H, W) -> of the input frame, float32.

        As `SamPredictor`, scaled in double precision.
        """
        frame = self.input_size(*original_size)
        if frame == tuple(original_size):
            return xy.float()
        scale = [frame[1] / original_size[1], frame[0] / original_size[0]] * (xy.shape[-1] // 2)
        return (xy.double() * torch.tensor(scale, dtype=torch.double, device=xy.device)).float()

    def upscale(self, logits: Tensor, original_size: tuple[int, int]) -> Tensor:
        """Logits (N, K, 4h, 4w) of the padded frame -> (N, K, H, W) of the image, bit for bit `Sam.postprocess_masks`.

        Steps that change nothing are left out: where all sizes are equal this is free.
        """
        side = self.sam.image_encoder.img_size
        height, width = self.input_size(*original_size)
        return resized(resized(logits, (side, side))[..., :height, :width], original_size)

    def encode(self, pixels: Tensor) -> Tensor:
        """Normalised, padded images (B, 3, S, S) -> image embeddings (B, C, h, w), with an HQ head (B, 3 C, h, w)."""
        return self.hq.encode(self.sam, pixels) if self.hq else self.sam.image_encoder(pixels)

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

        ``embeddings`` (N, C, h, w); ``points`` (N, P, 2) x, y in pixels of the model's input frame, with ``labels`` (N, P)
        1 foreground, 0 background, -1 padding; ``boxes`` (N, 4) XYXY; ``mask_inputs`` (N, 1, 4h, 4w) logits; ``tasks`` (N,)
        task ids, or None for no task prompt. Returns logits (N, 4, 4h, 4w) and predicted IoU (N, 4): output 0 is the
        single-mask output, 1 to 3 are the multi-mask outputs.

        Raises:
            ValueError: points without labels, or labels without points.
        """
        if (points is None) != (labels is None):
            raise ValueError("points and labels belong together: give both or neither")
        n, device = len(embeddings), embeddings.device
        sparse = []  # points and box apart, as SAM does: a matrix product's last bit depends on its number of rows
        if points is not None:
            if boxes is None:  # SAM adds one padding point where there is no box
                points, labels = F.pad(points, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=-1)
            sparse.append(self._embed_prompts(points, labels))
        if boxes is not None:
            sparse.append(
                self._embed_prompts(boxes.view(n, 2, 2), torch.tensor([[2, 3]], device=device).expand(n, -1))
            )
        tokens = (
            torch.cat(sparse, 1)
            if sparse
            else torch.zeros(n, 0, self.sam.prompt_encoder.embed_dim, device=device)
        )
        return self._decode(embeddings, tokens, mask_inputs, tasks)

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

        ``xy`` (N, P, 2) and ``codes`` (N, P) as in SAM's ONNX export: 1 foreground point, 0 background point, 2 and 3 the
        box's first and second corner, -1 padding. A prompt without a box has one padding, as SAM gives it. Faster than
        `decode` (`sumlib.model.fast_decoder`), and equal to it up to rounding.
        """
        return self._decode(embeddings, self._embed_prompts(xy, codes), mask_inputs, tasks, fast=True)

    def _embed_prompts(self, xy: Tensor, codes: Tensor) -> Tensor:
        """(N, P, 2) and (N, P) as in `decode_codes` -> (N, P, C)."""
        prompt = self.sam.prompt_encoder
        table = torch.cat(
            [e.weight for e in prompt.point_embeddings] + [prompt.not_a_point_embed.weight]
        )  # (5, C)
        codes = codes.long()
        with torch.autocast(
            xy.device.type, enabled=False
        ):  # coordinates in bf16 would be off by up to S / 512 pixels
            position = prompt.pe_layer.forward_with_coords(
                xy.float() + 0.5, prompt.input_image_size
            )  # (N, P, C)
        return position * (codes >= 0)[..., None] + table[codes]  # code -1 is the table's last row

    def _decode(
        self,
        embeddings: Tensor,
        sparse: Tensor,
        mask_inputs: Tensor | None,
        tasks: Tensor | None,
        fast: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """`MaskDecoder.predict_masks`, with an image embedding (C, h, w) and a task of its own for each prompt."""
        decoder = self.sam.mask_decoder
        outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(
            len(embeddings), -1, -1
        )  # (N, 1 + 4, C)
        fused = task = None
        if self.hq:
            width = self.sam.prompt_encoder.embed_dim
            embeddings, fused = embeddings[:, :width], embeddings[:, width:]
            token = self.hq.token.weight.expand(len(embeddings), -1, -1)  # (N, 1, C)
            if tasks is not None:
                outputs = torch.cat([outputs[:, :1], outputs[:, 1:] + self.hq.task_masks(tasks)[:, None]], 1)
                token = token + self.hq.task_token(tasks)[:, None]
            outputs = torch.cat([outputs, token], 1)
        elif tasks is not None:
            task = self.task_prompt(tasks)  # (N, C)
        attend_to = self._attend_fast if fast else self._attend
        hidden, source = attend_to(embeddings, torch.cat([outputs, sparse], dim=1), mask_inputs, task)
        kernels = torch.stack(
            [mlp(hidden[:, 1 + k]) for k, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1
        )
        grid, features = embeddings.shape[2:], None
        if fast:
            folded = mask_features(decoder, source)
            logits = unfold(folded @ kernels.transpose(1, 2), grid)  # (N, 4, 4h, 4w)
            features = unfold(folded, grid) if self.hq else None
        else:
            features = decoder.output_upscaling(
                source.transpose(1, 2).reshape(embeddings.shape)
            )  # (N, C / 8, 4h, 4w)
            logits = (kernels @ features.flatten(2)).unflatten(2, features.shape[2:])
        if self.hq:
            fine = self.hq.mask(hidden[:, 5], features, fused)
            logits = fine.expand_as(logits) if self.training else logits + fine
        return logits, decoder.iou_prediction_head(hidden[:, 0])

    def _attend(
        self, embeddings: Tensor, tokens: Tensor, mask_inputs: Tensor | None, task: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens (N, T, C) look at the images, with a task prompt (N, C) if given: tokens and rows of pixels (N, h w, C)."""
        prompt = self.sam.prompt_encoder
        if task is not None:
            embeddings = embeddings + task[:, :, None, None]
        dense = (
            prompt.no_mask_embed.weight[:, :, None, None]
            if mask_inputs is None
            else prompt.mask_downscaling(mask_inputs)
        )
        return self.sam.mask_decoder.transformer(
            embeddings + dense, self._position().expand(len(embeddings), -1, -1, -1), tokens
        )

    def _attend_fast(
        self, embeddings: Tensor, tokens: Tensor, mask_inputs: Tensor | None, task: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`_attend` by `sumlib.model.fast_decoder`."""
        prompt = self.sam.prompt_encoder
        dense = (
            prompt.no_mask_embed.weight[:, None] if mask_inputs is None else embed_masks(prompt, mask_inputs)
        )
        if task is not None:
            dense = dense + task[:, None]
        image, position = (x.flatten(2).transpose(1, 2) for x in (embeddings, self._position()))
        return attend(
            self.sam.mask_decoder.transformer, (image + dense).contiguous(), position.contiguous(), tokens
        )

    def _position(self) -> Tensor:
        with torch.autocast(self.sam.device.type, enabled=False):
            return self.sam.prompt_encoder.get_dense_pe()  # (1, C, h, w)


def decoder_copy(model: Sum) -> Sum:
    """A copy of a model's prompt encoder and mask decoder alone, with its task prompt; its ``encode`` hands embeddings through."""
    sam = model.sam
    copy = Sum(Sam(nn.Identity(), deepcopy(sam.prompt_encoder), deepcopy(sam.mask_decoder)))
    copy.task_prompt = deepcopy(model.task_prompt)
    return copy


class SumPredictor(SamPredictor):
    """SAM's predictor with the task prompt: ``predict(..., task=1)``. Everything else is as in `SamPredictor`.

    Raises ValueError for a model in HQ-SAM's architecture, which `SamPredictor` can not run: use `Sum.encode` and `Sum.decode`.
    """

    def __init__(self, model: Sum):
        if model.hq:
            raise ValueError(
                "SumPredictor runs models in SAM's architecture; one in HQ-SAM's is used through Sum.encode and Sum.decode"
            )
        super().__init__(model.sam)
        self.task_prompt = model.task_prompt

    @torch.no_grad()
    def predict(self, *args, task: int | None = None, **kwargs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`SamPredictor.predict` with the task id ``task``, or without a task prompt if None; give it in the first round only.

        Raises:
            ValueError: no such task.
        """
        if task is not None and task not in range(self.task_prompt.num_embeddings):
            raise ValueError(f"no task {task!r}: known are 0 to {self.task_prompt.num_embeddings - 1}")
        plain = self.features
        if task is not None and self.is_image_set:
            self.features = plain + self.task_prompt.weight[task][:, None, None]
        try:
            return super().predict(*args, **kwargs)
        finally:
            self.features = plain
