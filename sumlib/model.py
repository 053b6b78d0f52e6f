"""SUM: a Segment Anything Model with a task prompt (METHOD section 1).

The networks are `segment-anything`'s own classes; this module builds them at micro scale too, adds the task prompt,
decodes prompts of several images in one batch (SAM's `MaskDecoder.forward` takes one image), and saves and loads both.
"""

import hashlib
import json
import os
from copy import deepcopy
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from sumlib.adapters import adapter_width, add_adapters
from sumlib.attention import with_few_tokens
from sumlib.hq import HqHead
from sumlib.masks import longest_side_size, resize_longest_side

NUM_TASKS = 4
"""0 unspecified, 1 salient object, 2 entity, 3 part."""
OFFICIAL = {"vit_b": "sam_vit_b_01ec64.pth", "vit_l": "sam_vit_l_0b3195.pth", "vit_h": "sam_vit_h_4b8939.pth"}
"""SAM's own checkpoints, under https://dl.fbaipublicfiles.com/segment_anything/."""
MICRO_DEPTHS = {"micro": 6, "micro_l": 4, "micro_b": 2}
"""Blocks of the image encoder of the micro models, which stand for ViT-H, ViT-L and ViT-B."""
MODEL_TYPES = (*MICRO_DEPTHS, *OFFICIAL)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, what is wrong and the remedy."""


class ConvStem(nn.Module):
    """Patch embedding with a hierarchy of small convolutions: (B, 3, S, S) -> (B, S/4, S/4, C).

    A ViT of a million parameters, trained for minutes, learns edges far faster this way than from one 4 x 4 convolution.
    """

    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(3, width // 4, 3, padding=1), nn.GELU(),
            nn.Conv2d(width // 4, width // 2, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(width, width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


def build_sam_micro(size: int = 64, patch: int = 4, width: int = 128, depth: int = 6, heads: int = 4, channels: int = 128) -> Sam:
    """A SAM of 1.94 M parameters (with ``depth`` 6) for ``size`` x ``size`` images, from `segment-anything`'s classes.

    Its embedding is (channels, size / patch, size / patch) and its mask logits are (size, size) for ``patch`` 4, so that
    strokes one pixel wide can be told apart.
    """
    grid = size // patch
    encoder = ImageEncoderViT(
        img_size=size, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, mlp_ratio=3.0, out_chans=channels,
        qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6), use_abs_pos=True, use_rel_pos=True,
        window_size=8, global_attn_indexes=tuple(range(1, depth, 2)),
    )  # fmt: skip
    encoder.patch_embed = ConvStem(width)
    return Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=channels, image_embedding_size=(grid, grid), input_image_size=(size, size), mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=channels, mlp_dim=2 * channels, num_heads=4),
            transformer_dim=channels, iou_head_depth=3, iou_head_hidden_dim=channels,
        ),
    )  # fmt: skip


class Sum(nn.Module):
    """A promptable model: SAM plus one learned vector a task, added to the image embedding.

    The vectors start at zero, so an untrained ``Sum`` gives SAM's output bit for bit (METHOD section 1). With ``hq`` it has HQ-SAM's
    architecture (`sumlib.hq`): embeddings carry the fused features in further channels, in training all outputs are the HQ mask's,
    else it is added to each of SAM's; task vectors are then those of the HQ head.
    """

    def __init__(self, sam: Sam, num_tasks: int = NUM_TASKS, hq: bool = False):
        super().__init__()
        self.sam = sam
        self.hq = HqHead(sam, num_tasks) if hq else None
        self.task_prompt = nn.Embedding(num_tasks, sam.prompt_encoder.embed_dim)
        nn.init.zeros_(self.task_prompt.weight)

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
            raise ValueError(f"an image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}: convert it first")
        side = self.sam.image_encoder.img_size
        resized = np.array(image, order="C") if max(image.shape[:2]) == side else resize_longest_side(image, side)
        return self.sam.preprocess(torch.from_numpy(resized).to(self.sam.device).permute(2, 0, 1).contiguous())

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
        if logits.shape[-2:] != (side, side):
            logits = F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)
        logits = logits[..., :height, :width]
        if (height, width) != tuple(original_size):
            logits = F.interpolate(logits, tuple(original_size), mode="bilinear", align_corners=False)
        return logits

    def encode(self, pixels: Tensor) -> Tensor:
        """Normalised, padded images (B, 3, S, S) -> image embeddings (B, C, h, w), with an HQ head (B, 3 C, h, w)."""
        return self.hq.encode(self.sam, pixels) if self.hq else self.sam.image_encoder(pixels)

    def decode(
        self, embeddings: Tensor, *, points: Tensor | None = None, labels: Tensor | None = None, boxes: Tensor | None = None,
        mask_inputs: Tensor | None = None, tasks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
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
            sparse.append(self._embed_prompts(boxes.view(n, 2, 2), torch.tensor([[2, 3]], device=device).expand(n, -1)))
        tokens = torch.cat(sparse, 1) if sparse else torch.zeros(n, 0, self.sam.prompt_encoder.embed_dim, device=device)
        return self._decode(embeddings, tokens, mask_inputs, tasks)

    def decode_codes(
        self, embeddings: Tensor, xy: Tensor, codes: Tensor, *, mask_inputs: Tensor | None = None, tasks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`decode` for prompts of mixed kinds in one batch.

        ``xy`` (N, P, 2) and ``codes`` (N, P) as in SAM's ONNX export: 1 foreground point, 0 background point, 2 and 3 the
        box's first and second corner, -1 padding. A prompt without a box has one padding, as SAM gives it. Faster than
        `decode` (`sumlib.attention`), and equal to it up to rounding.
        """
        return self._decode(embeddings, self._embed_prompts(xy, codes), mask_inputs, tasks, fast=True)

    def _embed_prompts(self, xy: Tensor, codes: Tensor) -> Tensor:
        """(N, P, 2) and (N, P) as in `decode_codes` -> (N, P, C)."""
        prompt = self.sam.prompt_encoder
        table = torch.cat([e.weight for e in prompt.point_embeddings] + [prompt.not_a_point_embed.weight])  # (5, C)
        codes = codes.long()
        with torch.autocast(xy.device.type, enabled=False):  # coordinates in bf16 would be off by up to S / 512 pixels
            position = prompt.pe_layer.forward_with_coords(xy.float() + 0.5, prompt.input_image_size)  # (N, P, C)
        return position * (codes >= 0)[..., None] + table[codes]  # code -1 is the table's last row

    def _decode(
        self, embeddings: Tensor, sparse: Tensor, mask_inputs: Tensor | None, tasks: Tensor | None, fast: bool = False
    ) -> tuple[Tensor, Tensor]:
        """`MaskDecoder.predict_masks`, with an image embedding (C, h, w) and a task of its own for each prompt."""
        decoder = self.sam.mask_decoder
        outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(len(embeddings), -1, -1)  # (N, 1 + 4, C)
        folded = None
        if self.hq:
            width = self.sam.prompt_encoder.embed_dim
            embeddings, folded = embeddings[:, :width], embeddings[:, width:]
            token = self.hq.token.weight.expand(len(embeddings), -1, -1)  # (N, 1, C)
            if tasks is not None:
                outputs = torch.cat([outputs[:, :1], outputs[:, 1:] + self.hq.task_masks(tasks)[:, None]], 1)
                token = token + self.hq.task_token(tasks)[:, None]
            outputs = torch.cat([outputs, token], 1)
        elif tasks is not None:
            embeddings = embeddings + self.task_prompt(tasks)[:, :, None, None]
        hidden, features = self._attend(embeddings, outputs, sparse, mask_inputs, fast)
        kernels = torch.stack([mlp(hidden[:, 1 + k]) for k, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
        logits = (kernels @ features.flatten(2)).unflatten(2, features.shape[2:])  # (N, 4, 4h, 4w)
        if self.hq:
            fine = self.hq.mask(hidden[:, 5], features, folded)
            logits = fine.expand_as(logits) if self.training else logits + fine
        return logits, decoder.iou_prediction_head(hidden[:, 0])

    def _attend(self, embeddings: Tensor, outputs: Tensor, sparse: Tensor, mask_inputs: Tensor | None, fast: bool) -> tuple[Tensor, Tensor]:
        """Output tokens (N, K, C) and prompt tokens (N, P, C) look at the images: tokens (N, K + P, C) and mask features (N, C / 8, 4h, 4w)."""
        prompt, decoder = self.sam.prompt_encoder, self.sam.mask_decoder
        n = len(embeddings)
        with torch.autocast(embeddings.device.type, enabled=False):
            position = prompt.get_dense_pe().expand(n, -1, -1, -1)  # (N, C, h, w)
        if mask_inputs is None:
            dense = prompt.no_mask_embed.weight[:, :, None, None]
        else:
            dense = prompt.mask_downscaling(mask_inputs)
        tokens = torch.cat([outputs, sparse], dim=1)  # (N, K + P, C)
        transformer = with_few_tokens(decoder.transformer) if fast else decoder.transformer
        hidden, source = transformer(embeddings + dense, position, tokens)
        return hidden, decoder.output_upscaling(source.transpose(1, 2).reshape(embeddings.shape))


def build_like(sam: Sam) -> Sam:
    """A SAM of the same architecture with fresh weights.

    Raises ValueError if it is none of `MODEL_TYPES`.
    """
    shapes = _plain(_shapes(sam.state_dict()))
    for model_type in MODEL_TYPES:
        if shapes == _sam_shapes(model_type):
            return _build(model_type)
    raise ValueError(_kind(shapes))


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
            raise ValueError("SumPredictor runs models in SAM's architecture; one in HQ-SAM's is used through Sum.encode and Sum.decode")
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


def best_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_sam(model_type: str, checkpoint: str | Path | None = None, *, sha256: str | None = None) -> Sam:
    """A SAM in evaluation mode, on the CPU, float32.

    Args:
        model_type: one of `MODEL_TYPES`.
        checkpoint: weights, ``.safetensors`` or ``.pth`` (SAM's own files); None gives random ones.
        sha256: what the file's SHA-256 must be, in hex; None: not checked.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, has another hash, or holds another architecture.
        ValueError: unknown model_type.
    """
    if checkpoint is None:
        return _build(model_type).eval()
    with torch.device("meta"):  # the shapes alone; the weights come from the file
        sam = _build(model_type)
    remedy = _remedy(model_type)
    state, _ = _read(Path(checkpoint), sha256, remedy)
    return _fill(sam, state, f"a SAM of model_type {model_type!r}", Path(checkpoint))


def save_sam(path: str | Path, sam: Sam, metadata: dict) -> None:
    """Write a SAM as safetensors, whole or not at all.

    ``metadata`` holds JSON values: "model_type", and how the weights were made. Equal weights and metadata give equal
    bytes.

    Raises:
        ValueError: the path does not end in .safetensors, or the model is none of ``metadata["model_type"]``.
    """
    _write(Path(path), sam, sam, metadata)


def load_sum(path: str | Path, *, sha256: str | None = None) -> Sum:
    """A `Sum` that `save_sum` wrote, with its task prompt; its metadata are read with `read_metadata`.

    Raises: as `load_sam`.
    """
    path = Path(path)
    state, metadata = _read(path, sha256, "make it again with `dvc repro`")
    model_type = metadata.get("model_type")
    if model_type not in MODEL_TYPES:
        raise CheckpointError(f"{path}: not written by save_sum: its metadata name no known model_type; {_kind(_shapes(state))}")
    tasks = len(state.get("task_prompt.weight", range(NUM_TASKS)))
    with torch.device("meta"):
        model = Sum(_build(model_type), tasks, hq="hq.token.weight" in state)
        if width := metadata.get("adapter_width"):
            add_adapters(model.sam.image_encoder, width)
    return _fill(model, state, f"a SUM of model_type {model_type!r}", path)


def save_sum(path: str | Path, model: Sum, metadata: dict) -> None:
    """Write a `Sum` with its task prompt, and adapters or an HQ head if it has some; see `save_sam`."""
    _write(Path(path), model, model.sam, metadata)


def read_metadata(path: str | Path) -> dict:
    """What `save_sam` or `save_sum` were given as ``metadata``; {} for files of others. Raises: as `load_sam`."""
    return _read(Path(path), None, "make it again with `dvc repro`", weights=False)[1]


def _build(model_type: str) -> Sam:
    if model_type not in MODEL_TYPES:
        raise ValueError(f"unknown model_type {model_type!r}; known are {', '.join(MODEL_TYPES)}")
    return build_sam_micro(depth=MICRO_DEPTHS[model_type]) if model_type in MICRO_DEPTHS else sam_model_registry[model_type]()


def _remedy(model_type: str) -> str:
    if model_type in MICRO_DEPTHS:
        return "restore the one that ships with `dvc repro data.dvc`, or rebuild it with notebooks/foundation.ipynb"
    return f"download it (again) from https://dl.fbaipublicfiles.com/segment_anything/{OFFICIAL[model_type]}"


def _read(path: Path, sha256: str | None, remedy: str, weights: bool = True) -> tuple[dict[str, Tensor], dict]:
    """State dictionary and metadata of a checkpoint; without ``weights`` the former is empty."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such checkpoint; {remedy}")
    if sha256 is not None:
        with open(path, "rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != sha256.strip().lower():
            raise CheckpointError(f"{path}: its SHA-256 is {actual}, not {sha256}: damaged or another file; {remedy}, or correct the hash")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                notes = json.loads((file.metadata() or {}).get("sumlib", "{}"))
                return {key: file.get_tensor(key).clone() for key in file.keys() if weights}, notes  # no views of the file
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # readers raise all sorts at damaged bytes
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: truncated, or not a checkpoint ({reason}); {remedy}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: not a dictionary of tensors, as SAM's checkpoints are; {remedy}")
    return state, {}


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def _plain(shapes: dict) -> dict:
    """Without adapters."""
    return {key: shape for key, shape in shapes.items() if ".adapter." not in key}


@cache
def _sam_shapes(model_type: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return _shapes(_build(model_type).state_dict())


def _kind(shapes: dict[str, tuple[int, ...]]) -> str:
    """Which model the shapes are of, and how it is read."""
    inner = _plain({key.removeprefix("sam."): shape for key, shape in shapes.items() if key != "task_prompt.weight" and not key.startswith("hq.")})
    for model_type in MODEL_TYPES:
        if inner == _sam_shapes(model_type):
            if "task_prompt.weight" in shapes:
                return f"its shapes fit a SUM of model_type {model_type!r}, which save_sum writes and load_sum reads"
            return f"its shapes fit a SAM of model_type {model_type!r}, which load_sam({model_type!r}, ...) reads"
    return f"its shapes fit none of {', '.join(MODEL_TYPES)}: use another checkpoint"


def _fill(module: nn.Module, state: dict[str, Tensor], what: str, path: Path) -> nn.Module:
    """Give a module on the device "meta" the weights of a file, if all names and shapes agree."""
    expected, found = _shapes(module.state_dict()), _shapes(state)
    wrong = [f"{key} is {found[key]}, expected {expected[key]}" for key in expected if found.get(key, expected[key]) != expected[key]]
    wrong += [f"{key} is missing" for key in expected if key not in found]
    wrong += [f"{key} is unknown" for key in found if key not in expected]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{path}: not {what}: {'; '.join(wrong[:3])}{more}; {_kind(found)}")
    module.load_state_dict({key: value.float().contiguous() for key, value in state.items()}, assign=True)
    return module.eval()


def _write(path: Path, module: nn.Module, sam: Sam, metadata: dict) -> None:
    """Write ``module``, which is or holds ``sam``, under a temporary name, then rename."""
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: models are written as safetensors; let the name end in .safetensors")
    model_type, width = metadata.get("model_type"), adapter_width(sam.image_encoder)
    if width and module is sam:
        raise ValueError(f"{path}: not written, a SAM with adapters is no SAM to others; write it with save_sum")
    if model_type not in MODEL_TYPES or _plain(_shapes(sam.state_dict())) != _sam_shapes(model_type):
        raise ValueError(f"{path}: not written, the model is no {model_type!r} as its metadata say; {_kind(_shapes(sam.state_dict()))}")
    tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    # One entry, since safetensors writes entries in random order and equal models shall be equal files.
    notes = {"sumlib": json.dumps(metadata | ({"adapter_width": width} if width else {}), sort_keys=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        save_file(tensors, part, metadata=notes)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
