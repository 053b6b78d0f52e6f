"""SAM as two ONNX files, in the interface of SAM's own export, which annotation tools take."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.onnx import SamOnnxModel
from torch import Tensor, nn
from torch.nn import functional as F

NEEDED = "'onnx>=1.17' 'onnxruntime>=1.20'"
FILES = ("encoder.onnx", "decoder.onnx", "encoder.onnx.data", "decoder.onnx.data", "README.md")
OUTPUTS = ("masks", "iou_predictions", "low_res_masks")
OPSET = 17


class Encoder(nn.Module):
    """Image (h, w, 3) float32 RGB 0 to 255, sides at most S -> embeddings (1, C, h', w').

    Normalises and pads the image, as `Sam.preprocess` does, so that a tool only has to scale it.
    """

    def __init__(self, sam: Sam):
        super().__init__()
        self.sam = sam

    def forward(self, image: Tensor) -> Tensor:
        pixels = (image.permute(2, 0, 1)[None] - self.sam.pixel_mean) / self.sam.pixel_std
        side = self.sam.image_encoder.img_size
        return self.sam.image_encoder(F.pad(pixels, (0, side - pixels.shape[3], 0, side - pixels.shape[2])))


class Decoder(SamOnnxModel):
    """SAM's own ONNX decoder, with mask sizes that follow the image's.

    The package segment-anything 1.0 turns them into Python numbers, which a traced file keeps for ever.
    """

    def mask_postprocessing(self, masks: Tensor, orig_im_size: Tensor) -> Tensor:
        frame = F.interpolate(masks, (self.img_size, self.img_size), mode="bilinear", align_corners=False)
        height, width = self.resize_longest_image_size(orig_im_size, self.img_size)
        size = orig_im_size.to(torch.int64)
        shown = frame[..., :height, :width]
        return F.interpolate(shown, (size[0], size[1]), mode="bilinear", align_corners=False)


def onnx_or_error() -> tuple[Any, Any]:
    """The packages `onnx` and `onnxruntime`; ImportError with the remedy if one is missing."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"form 'onnx' needs {error.name}: pip install {NEEDED} ({error})") from error
    return onnx, onnxruntime


def decoder_inputs(
    sam: Sam, points: int = 2, size: tuple[int, int] | None = None, mask: bool = False
) -> dict:
    """Inputs of the decoder as random tensors, the same for the same arguments.

    ``points`` of them, for an image of ``size`` (H, W), S x S if None, with a mask prompt if ``mask``.
    """
    prompt, draw = sam.prompt_encoder, torch.Generator().manual_seed(points)
    side = sam.image_encoder.img_size
    grid, low = prompt.image_embedding_size, prompt.mask_input_size
    labels = torch.tensor([[1, -1, 0, 2, 3]]).repeat(1, points)[:, :points]
    return {
        "image_embeddings": torch.randn(1, prompt.embed_dim, *grid, generator=draw),
        "point_coords": torch.rand(1, points, 2, generator=draw) * side,
        "point_labels": labels.float(),
        "mask_input": torch.randn(1, 1, *low, generator=draw),
        "has_mask_input": torch.tensor([float(mask)]),
        "orig_im_size": torch.tensor(size or (side, side)).float(),
    }


def write_folder(sam: Sam, folder: Path, card: str, *, single_mask: bool) -> None:
    """``encoder.onnx``, ``decoder.onnx`` and ``README.md``; see `sumlib.model.export.card.onnx_card`.

    ``single_mask``: the decoder gives the best of its masks for the prompt, else all four. Raises
    ImportError without `onnx`.
    """
    onnx_or_error()
    folder.mkdir()
    side = sam.image_encoder.img_size
    image = torch.zeros(side, side // 2, 3)
    _trace(
        Encoder(sam), {"input_image": image}, ("image_embeddings",), folder / "encoder.onnx", {0: "h", 1: "w"}
    )
    decoder = Decoder(sam, return_single_mask=single_mask)
    _trace(decoder, decoder_inputs(sam), OUTPUTS, folder / "decoder.onnx", {1: "points"})
    (folder / "README.md").write_text(card, encoding="utf-8", newline="\n")


@torch.no_grad()
def _trace(module: nn.Module, inputs: dict, outputs: tuple[str, ...], file: Path, axes: dict) -> None:
    """Write one file; the axes of image and points are free.

    By the tracer of TorchScript: `torch.export` stops at sizes of masks that depend on a tensor.
    """
    free = {name: axes for name in inputs if name.startswith(("input_image", "point"))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is the older tracer, and that sides of windows are numbers
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            str(file),  # of a Path, weights above 2 GB would have no place
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=free,
            opset_version=OPSET,
            dynamo=False,
        )
    gather(file)


def gather(file: Path) -> None:
    """Put weights that lie in files of their own, as they do above 2 GB, into one, ``file``.data."""
    onnx, _ = onnx_or_error()
    graph = onnx.load(file, load_external_data=False).graph
    entries = [entry for weight in graph.initializer for entry in weight.external_data]
    parts = {file.parent / entry.value for entry in entries if entry.key == "location"}
    if parts:
        whole = onnx.load(file)
        for part in parts:
            part.unlink()
        onnx.save_model(
            whole,
            file,
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location=f"{file.name}.data",
        )


def session(file: Path) -> Any:
    """An `onnxruntime.InferenceSession` of a file, on the CPU."""
    _, runtime = onnx_or_error()
    return runtime.InferenceSession(file, providers=["CPUExecutionProvider"])


def run(file: Any, inputs: dict[str, Tensor]) -> list[np.ndarray]:
    """The outputs of a `session` for tensors."""
    return file.run(None, {name: value.numpy() for name, value in inputs.items()})
