"""The small world of the tests: what every earlier stage would have left under the profile `smoke`.

    python -m sumlib.pipeline.smoke FOLDER    -> FOLDER/artifacts, FOLDER/results

Labels, refinement modules and a few fine-tuned models are really made, with two training steps each. The
per-mask results of all runs are made up: the reports need every run, and nobody reads these numbers.
"""

import json
import shutil
import sys
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from sumlib.base.device import seeded
from sumlib.base.files import write_text
from sumlib.config.params import Config, load_config
from sumlib.config.runs import RunConfig
from sumlib.data.registry import TASK_GROUPS, open_dataset
from sumlib.figures.shown import copy_shown
from sumlib.finetune import finetune
from sumlib.model.checkpoint import save_sum
from sumlib.model.foundation import load_foundation, load_labeller
from sumlib.pseudo.store import add_uncertainty, generate
from sumlib.refiner.measure import measure_refinement
from sumlib.refiner.module import Refiner, refine, save_refiner
from sumlib.refiner.training import train_refiner

RUNS = (
    "sum-small",
    "sum-medium",
    "sum-medium-seed1",
    "sum-medium-seed2",
    "sum-large",
    "vanilla-medium",
    "hq-sam-small",
)
"""The fine-tuned models that notebooks open."""
ROUNDS = 6
"""Rounds of the made-up results: the tables show 1, 3, 5 and 6 points."""


def build(folder: Path) -> None:
    """Write the ``artifacts`` and ``results`` of every stage before the reports into ``folder``."""
    config = load_config("smoke")
    artifacts, results = Path(folder) / "artifacts", Path(folder) / "results"
    maps = _refiners(config, artifacts / "refine", results / "metrics")
    tuned = {name: labeller.run for name, labeller in config.labellers.items() if labeller.run}
    for labeller in config.labellers:
        if labeller not in tuned:
            _labels(config, labeller, maps, artifacts)
    for name in dict.fromkeys((*RUNS, *tuned.values())):
        _tuned(config, config.run(name), artifacts)
    for labeller in tuned:  # with the models made just now
        _labels(config, labeller, maps, artifacts)
    _results(config, artifacts / "evaluate", results / "metrics")
    copy_shown(config.runs, artifacts / "evaluate", artifacts / "shown")


def pseudo_labels(config: Config, folder: Path) -> Path:
    """Pseudo-labels with certainty of the first unlabeled images, written into ``folder``; the Parquet file.

    The masks are refined by SAM's own decoder, which is the refinement module before its training.
    """
    model = load_foundation(config)
    images = open_dataset(config.data.unlabeled, config.data_root)

    @torch.no_grad()
    def refine(embeddings: Tensor, logits: Tensor, boxes: Tensor, points: Tensor) -> Tensor:
        labels = torch.ones(len(points), 1, dtype=torch.long)
        return model.decode(
            embeddings, points=points[:, None], labels=labels, boxes=boxes, mask_inputs=logits[:, None]
        )[0][:, 0]

    masks, output = folder / "masks.parquet", folder / "smoke.parquet"
    generate(model, images, config.pseudo_label, masks, progress=False)
    add_uncertainty(masks, output, model, refine, images, progress=False)
    return output


def _refiners(config: Config, folder: Path, metrics: Path) -> dict[str, tuple[str, Refiner]]:
    """Write every refinement module and its measurements; {file name: (labeller, module)}.

    One is trained and measured. The others start from the decoder of their own backbone.
    """
    model = load_foundation(config)
    human = ConcatDataset(
        [open_dataset(name, config.data_root)[:6].good() for name in config.data.human["small"]]
    )
    trained, log = train_refiner(
        model,
        human,
        config.refine,
        generator=torch.Generator().manual_seed(config.refine.seed),
        progress=False,
    )
    levels = {
        level: open_dataset(f"dev-{level}", config.data_root)[:2].good()
        for level in ("salient", "entity", "part")
    }
    measured = measure_refinement(model, trained, levels, threshold=config.finetune.theta, progress=False)
    keys = ("sam_iou", "refined_iou", "sam_biou", "refined_biou")
    means = {
        level: {key: round(100 * float(np.mean(masks[key])), 3) for key in keys}
        for level, masks in measured["levels"].items()
    }
    training = [
        {key: round(value, 6) for key, value in row.items() if np.isfinite(value)}
        for row in log.to_dict("records")
    ]
    modules = {}
    for name, refiner in config.refiners.items():
        labeller = config.labeller(refiner.labeller)
        backbone = config.run(labeller.run).backbone if labeller.run else labeller.backbone
        module = trained if backbone == "vit_h" else Refiner.of(load_foundation(config, backbone))
        who = {"budget": refiner.budget, "labeller": refiner.labeller}
        save_refiner(folder / f"{name}.safetensors", module, who)
        head = who | {"means": means, "training": training}
        write_text(metrics / f"refine-{name}.json", json.dumps(head | measured) + "\n")
        modules[name] = (refiner.labeller, module)
    return modules


def _labels(config: Config, labeller: str, modules: dict[str, tuple[str, Refiner]], artifacts: Path) -> None:
    """Write the masks of one labeller, and these masks with the maps of each of its refinement modules."""
    model, folder = load_labeller(config, labeller, artifacts), artifacts / "pseudo_label"
    images = open_dataset(config.data.unlabeled, config.data_root)
    masks = folder / f"{config.labeller(labeller).masks}.parquet"
    generate(model, images[: config.pseudo_label.limit_images], config.pseudo_label, masks, progress=False)
    for name, (owner, module) in modules.items():
        if owner == labeller:
            output = folder / f"{name}.parquet"
            add_uncertainty(masks, output, model, partial(refine, module), images, progress=False)


def _tuned(config: Config, run: RunConfig, artifacts: Path) -> None:
    """Write the model of a run after the two training steps of the profile."""
    labels = artifacts / "pseudo_label" / f"{run.pseudo_labels}.parquet"
    model, _ = finetune(config, run, labels if run.unlabeled else None)
    path = artifacts / "finetune" / f"{run.name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"run": asdict(run), "profile": config.profile, "model_type": config.model.type}
    save_sum(path, model, metadata)


def _results(config: Config, evaluated: Path, metrics: Path) -> None:
    """Write made-up per-mask results and group means of every run, for true masks of every test set."""
    masks = pd.DataFrame(
        (task, name, sample.name, k)
        for task, names in TASK_GROUPS.items()
        for name in names
        for sample in open_dataset(name, config.data_root)[: config.evaluate.limit_images].good()
        for k in range(len(sample.masks))
    )
    masks.columns = ["task", "dataset", "image", "mask"]
    rng = np.random.default_rng(0)
    masks["ease"] = rng.uniform(0.35, 0.75, len(masks))  # how easy a mask is, for every model
    evaluated.mkdir(parents=True, exist_ok=True)
    for run in config.runs.values():
        table = pd.concat(list(_scores(config, run, masks)), ignore_index=True)
        table.to_parquet(evaluated / f"{run.name}.parquet", index=False)
        means = table.groupby(["prompt", "setting", "task", "dataset", "round"])[["iou", "biou"]].mean()
        means = 100 * means.groupby(["prompt", "setting", "task", "round"]).mean()
        groups: dict = {}
        for (prompt, setting, task, number), row in means.iterrows():
            place = groups.setdefault(prompt, {}).setdefault(setting, {}).setdefault(task, {})
            for metric, column in (("mIoU", "iou"), ("mBIoU", "biou")):
                place.setdefault(metric, {})[str(number)] = round(float(row[column]), 3)
        write_text(metrics / f"{run.name}.json", json.dumps(groups, indent=1, sort_keys=True) + "\n")


def _scores(config: Config, run: RunConfig, masks: pd.DataFrame):
    """Made-up results of a run: a table for each first prompt, setting and round."""
    rng = np.random.default_rng(zlib.crc32(run.name.encode()))
    gain = rng.uniform(0, 0.06)
    who = {"run": run.name, "model": run.model, "train_set": run.train_set, "seed": run.seed}
    for prompt in dict.fromkeys((*config.evaluate.prompts, *run.extra_prompts)):
        for setting in dict.fromkeys((*config.evaluate.settings, *run.extra_settings)):
            for number in range(1, 2 if prompt == "boundary-point" else ROUNDS + 1):
                noise = rng.normal(0, 0.05, len(masks))
                iou = (masks["ease"] + gain + 0.03 * number + noise).clip(0, 1).astype(np.float32)
                yield pd.DataFrame(who, index=masks.index).assign(
                    **masks[["task", "dataset", "image", "mask"]],
                    prompt=prompt,
                    setting=setting,
                    round=number,
                    iou=iou,
                    biou=0.8 * iou,
                )


def main(arguments: Sequence[str]) -> int:
    """Command line: build the world in a new folder, whole or not at all; returns the exit status."""
    if len(arguments) != 1:
        print("usage: python -m sumlib.pipeline.smoke FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with seeded(0):
        build(part)
    part.rename(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
