"""Image embeddings on disk, for encoders that are not trained: each image is encoded once.

Where only the decoder is trained, or HQ-SAM's head, encoding the same images again and again takes most of
the time. An embedding is found by what it was made from: the pixels (and so the image and the input side),
the encoder's weights and settings, and the precision. So nothing ever has to be thrown away because
something has changed, and any number of runs can share one folder, which may be deleted at any time.
"""

import contextlib
import hashlib
import os
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MethodType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

FORMAT = 1
"""Part of every key: changed where the meaning of the files changes."""
RECOUNT = 32
"""Files written between two looks at what other processes have written."""
ABANDONED = 3600
"""Seconds after which a file that is not finished is nobody's any more."""


class EmbeddingCache:
    """A folder of embeddings, one file an image, with a limit of its size.

    Values are rounded to ``dtype`` when they are made, not when they are read: the first use and all later
    ones see the same bits. Images are encoded one at a time, so that the batch they come in makes no
    difference. A file is written beside its place and moved there: a killed process leaves no half of one,
    and processes that write the same one do not disturb each other. A damaged file counts as none.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        limit_gb: float = 20.0,
        dtype: torch.dtype = torch.float16,
        blocks: tuple[int, ...] = (),
    ):
        """
        Args:
            folder: is made if there is none.
            limit_gb: in 10^9 bytes. When it is reached nothing more is kept, and that is said once; what is
                there stays in use. Several processes may exceed it by a few files each.
            dtype: of what is kept, float16 (2.1 MB an image of 1024 pixels) or float32 (twice that); values
                beyond float16's largest are kept in float32.
            blocks: numbers of encoder blocks whose outputs are kept, too, for hooks that read them; HQ-SAM
                needs its `first_global_block` (6.3 MB more with ViT-B).
        """
        if dtype not in (torch.float16, torch.float32):
            raise ValueError(f"embeddings are kept as float16 or float32, not {dtype}")
        self.folder, self.limit, self.dtype, self.blocks = Path(folder), limit_gb * 1e9, dtype, tuple(blocks)
        self.hits, self.misses = 0, 0
        self.full = False
        """Whether nothing more is kept."""
        self._weights: tuple[tuple, str] | None = None
        self._used, self._written = 0, 0
        self._start()

    def encode(self, encoder: ImageEncoderViT, forward: Callable, pixels: Tensor) -> Tensor:
        """What ``forward`` gives for normalised images (B, 3, S, S): (B, C, h, w) float32, without gradient.

        Hooks of the kept blocks see the whole batch, once. Raises ValueError in a training of the encoder, or
        if such a hook changes what it sees.
        """
        if torch.is_grad_enabled() and any(p.requires_grad for p in encoder.parameters()):
            raise ValueError(
                "the image encoder is being trained, so its embeddings can not be cached: "
                "set cached_embeddings to false, or tune the decoder only"
            )
        with torch.no_grad():
            kept = [self._one(encoder, forward, image) for image in pixels]
            for number in self.blocks:
                block = _batch([one[f"block{number}"] for one in kept], pixels.device)
                _replay(encoder.blocks[number], block, number)
            return _batch([one["embedding"] for one in kept], pixels.device)

    def _one(self, encoder: ImageEncoderViT, forward: Callable, image: Tensor) -> dict[str, Tensor]:
        path = self._place(encoder, image)
        found = self._read(path)
        if found is not None:
            self.hits += 1
            return found
        self.misses += 1
        with _outputs_of(encoder, self.blocks) as blocks:
            made = {"embedding": forward(image[None])[0]} | {f"block{k}": v[0] for k, v in blocks.items()}
        made = {name: self._rounded(value) for name, value in made.items()}
        self._write(path, made)
        return made

    def _rounded(self, value: Tensor) -> Tensor:
        value = value.float().cpu().contiguous()
        short = value.to(self.dtype)
        return short if short.isfinite().all() else value

    def _place(self, encoder: ImageEncoderViT, image: Tensor) -> Path:
        """The file of an image (3, S, S): a folder for each encoder, a name for each image."""
        device = image.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else image.dtype
        digest = hashlib.sha256(f"{precision} {self.dtype} {self.blocks} {tuple(image.shape)}".encode())
        digest.update(image.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        name = digest.hexdigest()[:32]
        return self.folder / self._encoder(encoder) / name[:2] / f"{name}.safetensors"

    def _encoder(self, encoder: ImageEncoderViT) -> str:
        """Hash of the encoder, made anew when a setting, a weight or the place of a weight is another."""
        state = _settings(encoder), *((p.data_ptr(), p._version) for p in encoder.parameters())
        if self._weights is None or self._weights[0] != state:
            self._weights = state, encoder_hash(encoder)
        return self._weights[1]

    def _read(self, path: Path) -> dict[str, Tensor] | None:
        """The tensors of a file; None if there is none, or it is damaged."""
        try:
            with safe_open(path, "pt") as file:
                found = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
        wanted = {"embedding", *(f"block{number}" for number in self.blocks)}
        return found if found.keys() == wanted else None

    def _write(self, path: Path, tensors: dict[str, Tensor]) -> None:
        """Keep a file if there is room."""
        if self.full:
            return
        data = save(tensors)
        if self._written % RECOUNT == 0 or self._used + len(data) > self.limit:
            self._used = sum(size for _, size, _ in self._files())
        if self._used + len(data) > self.limit:
            self._stop(
                f"is full ({self._used / 1e9:.1f} of {self.limit / 1e9:.1f} GB)",
                "raise its limit, or delete the folder",
            )
            return
        try:
            _write_whole(path, data)
        except OSError as error:
            self._stop(
                f"can not be written to ({error.strerror or error})", "make room, or name another folder"
            )
            return
        self._used += len(data)
        self._written += 1

    def _stop(self, why: str, remedy: str) -> None:
        self.full = True
        print(
            f"{self.folder}: the cache of embeddings {why}; what is not in it is encoded each time; {remedy}"
        )

    def _files(self) -> Iterator[tuple[Path, int, float]]:
        """Path, size in bytes and time of every file."""
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # another process has just moved it
                    path = Path(folder) / name
                    state = path.stat()
                    yield path, state.st_size, state.st_mtime

    def _start(self) -> None:
        """Remove what killed processes have left."""
        for path, _, changed in self._files():
            if path.suffix == ".tmp" and time.time() - changed > ABANDONED:
                path.unlink(missing_ok=True)


def cache_embeddings(encoder: ImageEncoderViT, cache: EmbeddingCache) -> None:
    """From now on the encoder takes its embeddings from ``cache``, or adds them; see `EmbeddingCache`.

    `lighten` and `resize_input` may be called before or after. `stop_caching` undoes it.
    """
    encoder.embedding_cache = cache
    encoder.forward = MethodType(_cached_forward, encoder)


def stop_caching(encoder: ImageEncoderViT) -> None:
    """Undo `cache_embeddings`."""
    for name in ("forward", "embedding_cache"):
        encoder.__dict__.pop(name, None)


def first_global_block(encoder: ImageEncoderViT) -> int:
    """Number of the first block without windows: HQ-SAM's head reads its output."""
    return next(number for number, block in enumerate(encoder.blocks) if block.window_size == 0)


def encoder_hash(encoder: ImageEncoderViT) -> str:
    """Hash (16 hex digits) of an encoder's weights and of the settings that are no weights."""
    digest = hashlib.sha256(f"{FORMAT} {_settings(encoder)}".encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _batch(values: list[Tensor], device: torch.device) -> Tensor:
    return torch.stack([value.to(device).float() for value in values])


def _settings(encoder: ImageEncoderViT) -> str:
    blocks = [(block.window_size, block.attn.num_heads) for block in encoder.blocks]
    return f"{encoder.img_size} {blocks}"


def _cached_forward(self: ImageEncoderViT, pixels: Tensor) -> Tensor:
    return self.embedding_cache.encode(self, MethodType(type(self).forward, self), pixels)


@contextlib.contextmanager
def _outputs_of(encoder: ImageEncoderViT, numbers: tuple[int, ...]) -> Iterator[dict[int, Tensor]]:
    """What the numbered blocks give while the context is open; other hooks of theirs are not called."""
    outputs: dict[int, Tensor] = {}
    blocks = [encoder.blocks[number] for number in numbers]
    hooks = [block._forward_hooks for block in blocks]
    for number, block in zip(numbers, blocks):
        block._forward_hooks = OrderedDict()
        block.register_forward_hook(lambda _, inputs, output, number=number: outputs.update({number: output}))
    try:
        yield outputs
    finally:
        for block, own in zip(blocks, hooks):
            block._forward_hooks = own


def _replay(block: nn.Module, output: Tensor, number: int) -> None:
    """Call the hooks of a block as if it had just given ``output``."""
    block.forward = lambda x: x
    try:
        if block(output) is not output:
            raise ValueError(
                f"a hook changes the output of encoder block {number}: embeddings can not be cached, "
                "set cached_embeddings to false"
            )
    finally:
        del block.forward


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file as a whole or not at all, whoever else writes it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with open(number, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
