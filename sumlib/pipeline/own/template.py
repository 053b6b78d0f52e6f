"""A first `project.yaml` for a folder, with what was found by looking and every other key as a comment."""

import os
from pathlib import Path

from sumlib.base.files import write_text
from sumlib.pipeline.own.data import open_own
from sumlib.pipeline.own.project import FILE, Project, read_project

TEMPLATE = """\
# What `sumlib` does with this folder. Paths are relative to it; ~ is your home folder.
# Lines that begin with # show the default.
{understood}
images: {images}
masks: {masks}
# Several kinds of mask:
# masks: {{salient: masks/whole, leaf vein: masks/veins, part: parts.json}}
task: {task}             # salient object, entity, part, or a name of your own
# form: auto             # binary, labels, instances-in-folders, coco
unlabeled: {unlabeled}
checkpoint: {checkpoint}
# model: auto            # by the checkpoint's shapes; else vit_b, vit_l, vit_h
# tuning: auto           # full, lora, adapter, decoder
# recipe: auto           # cpu, 8gb, 16gb, 24gb, 80gb
held_out: 0.2            # share of the images; or a folder with its own images and masks; or a list of names
# init_from:             # a trained model, or an earlier project's folder, to go on from
# keep: choose           # share of the tuning that is kept beside SAM's weights, 0 to 1
# learning_curve: [10, 30, 100, all]
# evaluate: {{another set: ~/another}}
# seed: 0
# iterations:            # by the recipe
# hours:                 # no limit
# bad_share: 0.1         # share of bad masks above which `sumlib check` fails
# contrast: percentiles  # images of more than 8 bits: stretched; or by their type
# foreground:            # value of the foreground in binary masks; 0: masks are inverted
# ignore:                # [255]: labels that are no mask
# split: false           # each connected piece of a mask becomes a mask of its own
# crowd: auto            # annotations with iscrowd = 1: masks or skip
"""


def new_project(folder: str | Path, checkpoint: str | Path | None = None) -> Project:
    """Write a commented `project.yaml` into a folder after looking at it, and read it.

    Raises FileExistsError if there is one, and what `read_project` and `open_own` raise where images or masks
    cannot be found.
    """
    project = read_project(folder)
    if project.file.exists():
        raise FileExistsError(f"{project.file}: is there already; edit it, or remove it first")
    given = Path(checkpoint).expanduser().absolute() if checkpoint is not None else project.checkpoint
    data = open_own(project)
    text = TEMPLATE.format(
        understood="".join(f"# {line}\n" for line in ["", "Found by looking:", *data.understood]),
        images=_shown(project, project.images),
        masks=_shown(project, project.masks[0].path),
        task=next(iter(data.tasks)),
        unlabeled=_shown(project, project.unlabeled or project.images),
        checkpoint=_shown(project, given) if given else "            # e.g. ~/sam_vit_b_01ec64.pth",
    )
    write_text(project.folder / FILE, text)
    return read_project(folder)


def _shown(project: Project, path: Path) -> str:
    """A path as YAML text: relative to the project's folder where it lies inside."""
    inside = path.is_relative_to(project.folder)
    text = os.path.relpath(path, project.folder) if inside else str(path)
    plain = text.replace("/", "").replace("_", "").replace("-", "").replace(".", "")
    return text if plain.isalnum() and not plain.isdigit() else "'" + text.replace("'", "''") + "'"
