"""A SAM small enough for tests: random weights, 32 x 32 pixels, mask logits of the same size."""

import shutil
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sumlib.base.paths import ROOT
from sumlib.data.dataset import Sample
from sumlib.micro.world import Style, make_scene
from sumlib.model.micro_sam import build_sam_micro
from sumlib.model.sum import Sum


def entity_samples(count: int) -> list[Sample]:
    """Micro scenes of 64 x 64 pixels with their entities."""
    scenes = [make_scene(np.random.default_rng(k), Style()) for k in range(count)]
    return [Sample(f"image{k}", s.image, s.masks("entity"), 2, "EntitySeg") for k, s in enumerate(scenes)]


def small_sum(seed: int = 0, size: int = 32) -> Sum:
    """Random weights, the same ones for the same seed; logits of both signs and of some size."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Sum(build_sam_micro(size=size, width=32, depth=2, heads=2, channels=32))
    with torch.no_grad():  # as they come, logits are tiny and of one sign
        for mlp in model.sam.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(60)
            nn.init.zeros_(mlp.layers[-1].bias)
    return model.eval()


def changed_package(root: Path, module: str, old: str, new: str) -> Path:
    """A folder with a copy of the package in which the first ``old`` of ``module`` reads ``new``."""
    shutil.copytree(ROOT / "sumlib", root / "sumlib", ignore=shutil.ignore_patterns("__pycache__"))
    path = root / "sumlib" / module
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return root
