"""What was written is read again and must give the model's own masks, before it takes its place."""

from pathlib import Path

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from sumlib.model.export import huggingface, onnx_files
from sumlib.model.export.plain import ExportError
from sumlib.model.sum import Sum

CLOSE = 1e-4
"""Largest difference of logits, relative to the largest logit."""


@torch.no_grad()
def check_decode(model: Sum, found: Sum, task: int | None, folded: bool, path: Path) -> None:
    """Compare two rounds of one prompt on a random embedding: the first with the task, the second without.

    ``folded``: ``found`` has the task in itself and is not told it. Raises ExportError if they differ.
    """
    embedding = _embedding(model)
    side = model.sam.image_encoder.img_size
    click = {"points": torch.full((1, 1, 2), side / 3), "labels": torch.ones(1, 1, dtype=torch.int)}
    tasks = None if task is None else torch.tensor([task])
    first, score = model.decode(embedding, **click, tasks=tasks)
    other, their_score = found.decode(embedding, **click, tasks=None if folded else tasks)
    mask = first[:, :1]
    second, _ = model.decode(embedding, **click, mask_inputs=mask)
    later, _ = found.decode(embedding, **click, mask_inputs=mask)
    for name, ours, theirs in (
        ("masks", first, other),
        ("scores", score, their_score),
        ("round 2", second, later),
    ):
        _agree(ours, theirs, name, path)


@torch.no_grad()
def check_encoder(model: Sum, found: Sum, path: Path, *, loose: float = 0.0) -> None:
    """Compare all weights of the image encoders, which must be equal bit for bit.

    ``loose``: how far a matrix may be off, relative to its largest weight.
    """
    theirs = found.sam.image_encoder.state_dict()
    for key, value in model.sam.image_encoder.state_dict().items():
        off = (value.float() - theirs[key]).abs().max()
        if not off <= loose * value.abs().max():
            raise ExportError(f"{path}: not written, {key} of the image encoder came back changed")


@torch.no_grad()
def check_huggingface(sam: Sam, folder: Path, path: Path) -> None:
    """Compare `transformers`' own decoder, loaded from ``folder``, with SAM's; for all of the shown masks."""
    theirs = huggingface.open_folder(folder)[0]
    model = Sum(sam).eval()
    embedding, side = _embedding(model), sam.image_encoder.img_size
    point, label = torch.full((1, 1, 2), side / 3), torch.ones(1, 1, dtype=torch.int)
    for mask in (None, torch.randn(1, 1, *sam.prompt_encoder.mask_input_size, generator=_draw())):
        logits, score = model.decode(embedding, points=point, labels=label, mask_inputs=mask)
        out = theirs(
            image_embeddings=embedding,
            input_points=point[None],
            input_labels=label[None],
            input_masks=mask,
            multimask_output=True,
        )
        _agree(logits[:, 1:], out.pred_masks[:, 0], "masks", path)
        _agree(score[:, 1:], out.iou_scores[:, 0], "scores", path)


@torch.no_grad()
def check_onnx(sam: Sam, folder: Path, path: Path, single_mask: bool) -> None:
    """Compare onnxruntime's encoder and decoder with torch's, for an image and prompts of other sizes."""
    side = sam.image_encoder.img_size
    image = torch.randint(0, 256, (side // 2, side, 3), generator=_draw()).float()
    found = onnx_files.run(onnx_files.session(folder / "encoder.onnx"), {"input_image": image})
    _agree(onnx_files.Encoder(sam)(image), torch.from_numpy(found[0]), "embeddings", path)
    torch_decoder = onnx_files.Decoder(sam, return_single_mask=single_mask)
    decoder = onnx_files.session(folder / "decoder.onnx")
    for points, size, mask in ((2, (side, side * 3 // 2), False), (3, (side * 3, side * 2), True)):
        inputs = onnx_files.decoder_inputs(sam, points, size, mask)
        for name, ours, theirs in zip(
            onnx_files.OUTPUTS, torch_decoder(**inputs), onnx_files.run(decoder, inputs)
        ):
            _agree(ours, torch.from_numpy(np.asarray(theirs)), name, path)


def _agree(ours: Tensor, theirs: Tensor, name: str, path: Path) -> None:
    if ours.shape != theirs.shape:
        raise ExportError(
            f"{path}: not written, {name} came back as {tuple(theirs.shape)}, not {tuple(ours.shape)}"
        )
    off = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1.0))
    if not off <= CLOSE:
        raise ExportError(
            f"{path}: not written, {name} came back changed: off by {off:.1e} of the largest one"
        )


def _embedding(model: Sum) -> Tensor:
    """A random image embedding of what `Sum.encode` gives, (1, C, h, w); HQ-SAM's has 3 C channels."""
    prompt = model.sam.prompt_encoder
    channels = prompt.embed_dim * (3 if model.architecture == "hq_sam" else 1)
    return torch.randn(1, channels, *prompt.image_embedding_size, generator=_draw())


def _draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)
