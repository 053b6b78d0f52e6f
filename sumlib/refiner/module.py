"""The mask-refinement module: SAM's decoder, trained to sharpen SAM's masks (docs/method.md section 3).

Its input is always a mask, that mask's box and the point that produced it; its image embedding is SAM's own,
so a refinement costs one pass of the small decoder. "Frame" is the model's input frame of S x S pixels.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sumlib.base.files import whole
from sumlib.model.prompts import Prompts
from sumlib.model.sum import Sum, decoder_copy

LOGIT_LIMIT = math.log(254.5 / 0.5)
"""Mask prompts are clamped to this magnitude, the largest logit that survives 8-bit maps."""


class Refiner(nn.Module):
    """A prompt encoder and mask decoder that are shown a mask; only subclasses have an image encoder, too."""

    def __init__(self, network: Sum, trained: Sequence[nn.Parameter]):
        """``trained`` are the parameters of ``network`` that move."""
        super().__init__()
        self.network = network.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)

    @classmethod
    def of(cls, model: Sum, *more) -> "Refiner":
        """One that starts as a copy of ``model``'s decoder; ``more`` is for the constructor of a subclass."""
        network = decoder_copy(model)
        return cls(network, network.decoder_parameters, *more)

    def embed(self, embeddings: Tensor, pixels: Callable[[], Tensor]) -> Tensor:
        """What `forward` looks at, (B, C, h, w); here SAM's. ``pixels()`` are images (B, 3, S, S)."""
        return embeddings

    def forward(
        self, embeddings: Tensor, logits: Tensor, boxes: Tensor, points: Tensor
    ) -> tuple[Tensor, Tensor]:
        """N masks to refine -> their refined low-resolution logits (N, 4h, 4w) and predicted IoU (N,).

        ``embeddings`` (N, C, h, w) of `embed`; ``logits`` (N, 4h, 4w), SAM's low-resolution logits; ``boxes``
        (N, 4) XYXY of SAM's masks and ``points`` (N, 2) x, y that produced them, in pixels of the frame.
        """
        prompts = Prompts.from_boxes(boxes, points[:, None])
        low, score = self.network.decode_codes(
            embeddings, prompts.xy, prompts.codes, mask_inputs=self.mask_prompt(logits)
        )
        return low[:, 0], score[:, 0]  # the single-mask output

    @staticmethod
    def mask_prompt(logits: Tensor) -> Tensor:
        """Logits (N, 4h, 4w) -> mask prompts (N, 1, 4h, 4w), as large as those that were stored in 8 bits."""
        return logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)[:, None]

    def trained(self) -> dict[str, Tensor]:
        """The weights that make the refiner, by name."""
        names = ("network.sam.prompt_encoder.", "network.sam.mask_decoder.")
        return {
            name.removeprefix("network.sam."): value
            for name, value in self.state_dict().items()
            if name.startswith(names)
        }


@torch.no_grad()
def refine(refiner: Refiner, embeddings: Tensor, logits: Tensor, boxes: Tensor, points: Tensor) -> Tensor:
    """Refined low-resolution logits (N, 4h, 4w); arguments as `Refiner.forward`."""
    return refiner(embeddings, logits, boxes, points)[0].float()


def save_refiner(path: Path, refiner: Refiner, metadata: Mapping) -> None:
    """Write the decoder as safetensors with JSON-ready ``metadata``, as a whole or not at all."""
    tensors = {name: value.contiguous() for name, value in refiner.trained().items()}
    with whole(path) as temporary:  # one key: safetensors shuffles several
        save_file(tensors, temporary, {"refiner": json.dumps(metadata, sort_keys=True)})


def load_refiner(path: Path, model: Sum) -> tuple[Refiner, dict]:
    """The refiner in ``path`` for the foundation ``model``, and its metadata.

    Raises FileNotFoundError if there is no such file, ValueError if it is broken or of another architecture.
    """
    remedy = f"run `dvc repro refine@{path.stem}` again"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no refiner there; {remedy}")
    try:
        with safe_open(path, "pt") as file:
            tensors, metadata = (
                {name: file.get_tensor(name) for name in list(file.keys())},
                file.metadata() or {},
            )
    except SafetensorError as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error}); {remedy}") from None
    refiner = Refiner.of(model)
    shapes = lambda state: {name: tuple(value.shape) for name, value in state.items()}
    if shapes(tensors) != shapes(refiner.trained()):
        raise ValueError(f"{path}: a refiner of another architecture than the foundation model; {remedy}")
    if broken := [name for name, value in tensors.items() if not value.isfinite().all()]:
        raise ValueError(f"{path}: {broken[0]} has NaN or infinite values; {remedy}")
    try:
        notes = dict(json.loads(metadata.get("refiner", "{}")))
    except (ValueError, TypeError):
        raise ValueError(f"{path}: its metadata are broken; {remedy}") from None
    refiner.network.sam.load_state_dict(tensors, strict=False)
    return refiner.eval(), notes
