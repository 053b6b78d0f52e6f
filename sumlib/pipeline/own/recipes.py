"""Hardware recipes: what is held in memory at once, so that a training fits the machine.

A recipe never decides what is learnt where it can be helped: images and prompts that do not fit at once
follow one another, and their gradients add up to the same step. What does change the numbers says so.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch

from sumlib.base.device import best_device
from sumlib.config.schema import Count, OneOf, Positive, Range, Reader, Whole

TUNINGS = ("full", "lora", "adapter", "decoder")


@dataclass(frozen=True)
class Recipe:
    """What is held in memory at once."""

    memory_gb: Positive
    """Memory it is made for, in 10^9 bytes; nine tenths of it are enough."""
    input_side: Annotated[int, Range(64, 4096)] = 1024
    """Side of the model's frame in pixels, 512, 768 or 1024 (`resize_input`). Changes the numbers: half of it
    takes a quarter of time and memory, and shows a quarter of the pixels."""
    images_at_once: Count = 1
    """Images that are encoded together; more than these of a step follow one another."""
    prompts_at_once: Count = 4
    """Prompts of these images, in all, whose decoder and losses are held together."""
    bf16: bool = True
    """Compute in bfloat16 where autocast does; weights, losses and the optimiser stay in float32. Changes the
    numbers a little."""
    checkpointing: bool = True
    """Compute each block of the encoder a second time for its gradient: a fifth of the memory of a training,
    a third more time in the encoder."""
    light_attention: bool = True
    """Never write out attention in the encoder (`lighten`)."""
    loss_side: Annotated[str, OneOf(("full", "low"))] = "full"
    """Size at which answers are compared with masks: the input's, or that of the decoder's own logits (256
    pixels at 1024), a sixteenth of the memory. Changes the numbers."""
    workers: Whole = 0
    """Processes that load images ahead; 0: none, images are loaded when they are needed."""
    cached_embeddings: bool = True
    """Keep embeddings on disk where the encoder is not trained (`sumlib.model.embedding_cache`)."""
    tuning: Annotated[str, OneOf(TUNINGS)] = "full"
    """Which weights are trained where a project says auto; see `tuning_for`."""
    decoder_chunk: Count = 16
    """Prompts that are decoded together where nothing is trained: labels, maps, evaluation."""


RECIPES = {
    "cpu": Recipe(8, prompts_at_once=4, tuning="decoder", decoder_chunk=4),
    "8gb": Recipe(8, prompts_at_once=4, workers=2),
    "16gb": Recipe(16, prompts_at_once=8, workers=4, decoder_chunk=32),
    "24gb": Recipe(24, images_at_once=2, prompts_at_once=16, workers=4, decoder_chunk=64),
    "80gb": Recipe(
        80, images_at_once=4, prompts_at_once=40, checkpointing=False, workers=8, decoder_chunk=128
    ),
}
"""By name; the GPU recipes in the order of their memory."""
ENOUGH = 0.9
"""Share of a recipe's memory that a device must have: cards are sold by rounded numbers."""


class MemoryExceeded(RuntimeError):
    """Out of memory; the message names the key to lower."""


def choose_recipe(
    name: str = "auto", changes: Mapping[str, Any] | None = None, device: torch.device | None = None
) -> tuple[str, Recipe]:
    """The recipe called ``name`` with some keys changed, and its name.

    Args:
        name: one of `RECIPES`, or auto: the largest for which ``device`` has the memory.
        changes: values of single keys of `Recipe`, as YAML gives them.
        device: by default the GPU where there is one, else the CPU.

    Raises:
        ConfigError: an unknown name or key, or a value that is not allowed.
    """
    reader = Reader("recipe")
    name = reader.value(Annotated[str, OneOf(("auto", *RECIPES))], name, "recipe")
    if name == "auto":
        name = recipe_of_device(device or best_device())
    base = RECIPES[name]
    return name, reader.record(Recipe, vars(base) | dict(changes or {}), name)


def recipe_of_device(device: torch.device) -> str:
    """Name of the recipe for a device, by its memory."""
    if device.type != "cuda":
        return "cpu"
    return recipe_of_memory(torch.cuda.get_device_properties(device).total_memory)


def recipe_of_memory(size: int) -> str:
    """Name of the largest recipe for a GPU with ``size`` bytes; of the smallest, with a word, if none fits.

    >>> recipe_of_memory(25_430_000_000)
    '24gb'
    """
    names = [name for name in RECIPES if name != "cpu"]
    fitting = [name for name in names if size >= ENOUGH * RECIPES[name].memory_gb * 1e9]
    if not fitting:
        print(f"the GPU has {size / 1e9:.1f} GB; the smallest recipe, {names[0]}, may not fit")
        return names[0]
    return fitting[-1]


def tuning_for(recipe: Recipe, parameters: int) -> str:
    """What a model of ``parameters`` weights trains: as the recipe says, or "lora" where full does not fit.

    A trained parameter takes 16 bytes (itself, its gradient, two averages of AdamW), which shall leave half
    of the memory to the rest.

    >>> tuning_for(RECIPES["8gb"], 94_000_000), tuning_for(RECIPES["8gb"], 641_000_000)
    ('full', 'lora')
    """
    too_large = 16 * parameters > recipe.memory_gb * 1e9 / 2
    return "lora" if recipe.tuning == "full" and too_large else recipe.tuning


def lowered(recipe: Recipe, training: bool = True) -> tuple[str, Recipe] | None:
    """The key to change first so that less memory is needed, and the recipe changed; None if none is left.

    First come the keys that change no result.
    """
    half = lambda key: {key: getattr(recipe, key) // 2} if getattr(recipe, key) > 1 else {}
    on = lambda key: {} if getattr(recipe, key) else {key: True}
    steps = [
        half("images_at_once"),
        half("prompts_at_once") if training else half("decoder_chunk"),
        on("light_attention"),
        on("checkpointing") if training else {},
        on("bf16"),
        {"loss_side": "low"} if training and recipe.loss_side == "full" else {},
        {"tuning": "decoder"} if training and recipe.tuning != "decoder" else {},
        {"input_side": recipe.input_side - 256} if recipe.input_side > 512 else {},
    ]
    change = next((step for step in steps if step), None)
    return None if change is None else (next(iter(change)), replace(recipe, **change))


@contextmanager
def names_the_key(recipe: Recipe, training: bool = True) -> Iterator[None]:
    """Out of memory inside becomes one message that names the key to lower.

    Raises MemoryExceeded, from `torch.OutOfMemoryError`, `MemoryError`, or what PyTorch raises on a CPU.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise MemoryExceeded(_message(recipe, training, str(error))) from error


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    if isinstance(error, MemoryExceeded):  # the inner context has said it
        return False
    texts = "out of memory|can't allocate memory|not enough memory|ALLOC_FAILED|Cannot allocate memory"
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or bool(re.search(texts, str(error)))


def _message(recipe: Recipe, training: bool, reason: str) -> str:
    wanted = re.search(r"tried to allocate ([\d.]+ ?\w+)", reason, re.IGNORECASE)
    size = f" ({wanted[1]} more were asked for)" if wanted else ""
    step = lowered(recipe, training)
    if step is None:
        return f"out of memory{size}: no key of the recipe can be lowered further; take a smaller model"
    key, other = step
    old, new = (json.dumps(getattr(r, key)).strip('"') for r in (recipe, other))  # as YAML writes them
    same = key in ("images_at_once", "prompts_at_once", "decoder_chunk", "light_attention", "checkpointing")
    effect = "the results stay the same" if same else "this changes the results"
    smaller = [name for name, r in RECIPES.items() if r.memory_gb < recipe.memory_gb and name != "cpu"]
    other_recipe = f", or take the recipe {smaller[-1]}" if smaller else ""
    return f"out of memory{size}: set {key} to {new} (it is {old}; {effect}){other_recipe}"
