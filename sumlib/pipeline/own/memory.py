"""How much memory a training step takes: counted for any machine, or measured on this one's CPU.

    python -m sumlib.pipeline.own.memory count --backbone vit_b vit_h --recipe 8gb 24gb
    python -m sumlib.pipeline.own.memory measure --backbone vit_b --tuning full --recipe cpu --prompts 8

`count` runs the real step on tensors without data (PyTorch's FakeTensorMode) and adds up the memory of those
that are alive at the same time, seconds for a model that would not fit this machine. It does not see what
kernels use inside themselves, the allocator's waste, nor a GPU's context (about 0.5 GB).
`measure` runs it for real in a process of its own, with random weights, one image and random masks.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sumlib.base.device import seeded
from sumlib.config.params import FinetuneConfig, load_config
from sumlib.config.runs import RunConfig
from sumlib.data.tasks import Task
from sumlib.model.checkpoint import MODEL_TYPES, load_sam
from sumlib.model.light_encoder import lighten, resize_input
from sumlib.model.sum import Sum
from sumlib.pipeline.own.recipes import RECIPES, TUNINGS, Recipe
from sumlib.train import tuning
from sumlib.train.batches import Batch
from sumlib.train.interactive import interactive_step

RUN = RunConfig(
    "memory",
    "SUM",
    "small",
    unlabeled=True,
    uncertainty_loss=True,
    uncertainty_sampling=True,
    task_prompt="first",
    labels="refined",
)
"""The run that holds most: it weighs pixels by certainty."""
OPTIMISER_BYTES = 8
"""What AdamW keeps for each trained number: two averages in float32."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step."""

    weights: int
    """Of the model."""
    optimiser: int
    """AdamW's averages."""
    step: int
    """The most that a step holds besides: gradients, what is kept for them, and all that is in use."""
    largest: tuple[tuple[str, int], ...] = ()
    """What a step holds when it holds most: operation and shape, bytes; the largest first."""

    @property
    def total(self) -> int:
        return self.weights + self.optimiser + self.step


class LiveTensors(TorchDispatchMode):
    """Adds up the memory of all tensors that are made while it is active and still alive.

    Meant for tensors without data: where a number is asked for (``item``, ``if``), it is 1, or true.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.at_peak: Counter[str] = Counter()
        """Bytes by operation and shape when about the most was alive (within a hundredth)."""
        self._known: dict[int, tuple[int, str]] = {}
        self._noted = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            kind = args[0].dtype
            return True if kind == torch.bool else 1.0 if kind.is_floating_point else 1
        if func is torch.ops.aten._fused_sdp_choice.default:  # not known of tensors without data
            return int(torch.nn.attention.SDPBackend.FLASH_ATTENTION.value)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor, str(func))
        if self.live > 1.01 * self._noted:
            self._noted, self.at_peak = self.live, Counter()
            for size, origin in self._known.values():
                self.at_peak[origin] += size
        return result

    def _add(self, tensor: Tensor, operation: str) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        size = storage.nbytes()
        self._known[key] = size, f"{operation.removeprefix('aten.')} {tuple(tensor.shape)}"
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.live -= self._known.pop(key)[0]


def count_step(
    backbone: str, tuned: str, recipe: Recipe, *, prompts: int | None = None, rounds: int | None = None
) -> Memory:
    """Memory of one pass of `recipe` through a training step, counted on tensors without data.

    Args:
        backbone: one of `MODEL_TYPES`.
        tuned: which weights are trained, one of `TUNINGS`.
        prompts: at once, if not the recipe's.
        rounds: of clicks, if not those of the paper (7).
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, config = _model(backbone, tuned, recipe, rounds)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        trained = [p for p in model.parameters() if p.requires_grad]
        with LiveTensors() as live:
            batch = _batch(model, recipe.images_at_once, prompts or recipe.prompts_at_once)
            for p in trained:  # as in every pass but a step's first
                p.grad = torch.zeros_like(p)
            interactive_step(model, batch, RUN, config, torch.Generator().manual_seed(0))
    return Memory(
        weights,
        OPTIMISER_BYTES * sum(p.numel() for p in trained),
        live.peak,
        tuple(live.at_peak.most_common(8)),
    )


def table(
    backbones: Sequence[str], tunings: Sequence[str], recipes: Sequence[str], **options: int | None
) -> str:
    """Markdown: GB of a training step by backbone, tuning and recipe; in brackets what does not fit.

    ``options`` are those of `count_step`.
    """
    lines = [f"| backbone | tuning | {' | '.join(recipes)} |", f"| --- | --- |{' ---: |' * len(recipes)}"]
    for backbone in backbones:
        for tuned in tunings:
            cells = []
            for name in recipes:
                size = count_step(backbone, tuned, RECIPES[name], **options).total / 1e9
                cells.append(f"{size:.1f}" if size <= 0.9 * RECIPES[name].memory_gb else f"({size:.1f})")
            lines.append(f"| {backbone} | {tuned} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measure_step(
    backbone: str, tuned: str, recipe: str, *, prompts: int | None = None, rounds: int | None = None
) -> dict:
    """Run one step on the CPU in a process of its own, optimiser included.

    Returns "seconds" of the step, "model" and "above": resident bytes with the model alone, and the most
    above that. Raises RuntimeError if the process fails.
    """
    options = {"prompts": prompts, "rounds": rounds}
    call = f"_measured({backbone!r}, {tuned!r}, {recipe!r}, **{options!r})"
    code = f"from sumlib.pipeline.own.memory import _measured; {call}"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    # the settings of `make` keep freed memory in the process: the peak would be that of all steps together
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=kept)
    if done.returncode:
        raise RuntimeError(f"the step could not be measured:\n{done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def _measured(backbone: str, tuned: str, name: str, *, prompts: int | None, rounds: int | None) -> None:
    """Print what `measure_step` returns."""
    recipe = RECIPES[name]
    with seeded(0):
        _train(
            *_model("micro_b", "full", recipe, 2), recipe, 2
        )  # what libraries load at first use is no step's
        model, config = _model(backbone, tuned, recipe, rounds)
    before = _resident()
    seconds = _train(model, config, recipe, prompts or recipe.prompts_at_once)
    print(json.dumps({"seconds": seconds, "model": before, "above": _peak() - before}))


def _train(model: Sum, config: FinetuneConfig, recipe: Recipe, prompts: int) -> float:
    """One step with the optimiser's averages in place; its seconds."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimiser.step()  # so that its averages are there, as in every step but the first
    batch = _batch(model, recipe.images_at_once, prompts)
    start = time.perf_counter()
    interactive_step(model, batch, RUN, config, torch.Generator().manual_seed(0))
    optimiser.step()
    return time.perf_counter() - start


def _peak() -> int:
    """Most bytes that this process had in memory; `getrusage` counts the one that started it, too."""
    status = Path("/proc/self/status")
    if not status.is_file():  # no Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _model(backbone: str, tuned: str, recipe: Recipe, rounds: int | None) -> tuple[Sum, FinetuneConfig]:
    """A model with random weights, ready to be trained as the recipe says."""
    config = load_config("paper").finetune
    shared = {field.name for field in fields(config)} & {field.name for field in fields(recipe)}
    config = replace(config, **{name: getattr(recipe, name) for name in shared})
    config = replace(config, rounds=rounds or config.rounds)
    model = Sum(load_sam(backbone))
    encoder = model.sam.image_encoder
    if encoder.img_size > recipe.input_side:
        resize_input(model.sam, recipe.input_side)
    tuning.prepare(model, tuned, config, torch.Generator().manual_seed(0))
    tuning.parameter_groups(model, config, True, tuned)  # freezes the rest
    lighten(encoder, attention=recipe.light_attention, checkpointing=recipe.checkpointing)
    return model.train(), config


def _batch(model: Sum, images: int, prompts: int) -> Batch:
    """Images of noise with square masks, all of them pseudo-labels."""
    side = model.sam.image_encoder.img_size
    target = torch.zeros(prompts, side, side, dtype=torch.bool)
    target[:, side // 4 : side // 2, side // 4 : side // 2] = True
    return Batch(
        torch.randn(images, 3, side, side),
        torch.arange(prompts) % images,
        target,
        torch.full((prompts, side, side), 0.9),
        torch.full((prompts, 2), side / 3),
        torch.full((prompts,), int(Task.UNSPECIFIED)),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The commands of this module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m sumlib.pipeline.own.memory", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=("count", "measure", "largest"), help="largest: what takes most")
    parser.add_argument("--backbone", nargs="+", choices=MODEL_TYPES, default=["vit_b", "vit_l", "vit_h"])
    parser.add_argument("--tuning", nargs="+", choices=TUNINGS, default=list(TUNINGS))
    parser.add_argument("--recipe", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--prompts", type=int, help="prompts at once, if not the recipe's")
    parser.add_argument("--rounds", type=int, help="rounds of clicks (7)")
    given = parser.parse_args(arguments)
    options = {"prompts": given.prompts, "rounds": given.rounds}
    if given.what == "count":
        print(table(given.backbone, given.tuning, given.recipe, **options))
        return
    for backbone in given.backbone:
        for tuned in given.tuning:
            for name in given.recipe:
                print(f"{backbone}, {tuned}, recipe {name}:")
                if given.what == "measure":
                    found = measure_step(backbone, tuned, name, **options)
                    print(f"  {found['above'] / 1e9:.2f} GB above the model's {found['model'] / 1e9:.2f} GB")
                    print(f"  {found['seconds']:.0f} s")
                    continue
                counted = count_step(backbone, tuned, RECIPES[name], **options)
                print(f"  step {counted.step / 1e9:.2f} GB, averages {counted.optimiser / 1e9:.2f} GB")
                for origin, size in counted.largest:
                    print(f"  {size / 1e9:6.2f} GB  {origin}")


if __name__ == "__main__":
    main()
