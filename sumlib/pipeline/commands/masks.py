"""`sumlib masks`: SAM's automatic masks of many images."""

import argparse
import json
from pathlib import Path

from sumlib.base.progress import with_bar
from sumlib.pipeline.commands.common import (
    UsageError,
    add_command,
    add_max_bad,
    add_model,
    count,
    counted,
    note,
    share,
    status_of,
)

FORMS = ("coco", "labels", "masks", "overlay")
TEXT = """\
Find all masks of all images.

A grid of points is given to the model, and the masks that pass the thresholds are kept, as in SAM's
SamAutomaticMaskGenerator, which this runs. For each image the folder --out gets

  records/NAME.json   always: the masks as run-length codes with their scores, in SA-1B's format

and what --form asks for, by commas:

  coco     coco.json of all images
  labels   labels/NAME.png, 16 bit: 0 no mask, k the k-th of the record, small masks on large ones
  masks    masks/NAME/0001.png ..., one a mask, 255 inside
  overlay  overlay/NAME.png, the masks in colours over the image

Images that are done are not done again: a command that was stopped, or to which images were added, goes on
when it is given once more. Other settings, another model or a changed image do that image anew. Images that
cannot be read are listed in problems.json and at the end.
"""
EXAMPLE = """\
  sumlib masks photos/ --model sam_vit_b_01ec64.pth --out out/ --form coco,overlay
  sumlib masks aerial.tif --model sum.safetensors --task part --crop-layers 2 --out out/   many small objects
"""


def add(commands) -> None:
    """Add the command's arguments."""
    parser = add_command(commands, "masks", TEXT, EXAMPLE, run)
    parser.add_argument("inputs", type=Path, nargs="+", metavar="IMAGE|FOLDER", help="searched for images")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where results go")
    parser.add_argument("--form", type=forms, default=("coco",), metavar="FORM,...", help="default: coco")
    add_max_bad(parser)
    add_model(parser)
    group = parser.add_argument_group("masks (defaults as in SAM)")
    numbers = {
        "--points-per-side": (count, 32, "N", "points of the grid along a side of the image"),
        "--pred-iou": (share, 0.88, "T", "least predicted IoU; lower it for more masks"),
        "--stability": (share, 0.95, "T", "least stability of a mask; lower it for more masks"),
        "--stability-offset": (float, 1.0, "LOGIT", "shift of the threshold that stability is measured by"),
        "--nms": (share, 0.7, "T", "of masks whose boxes overlap more, the best is kept"),
        "--crop-layers": (int, 0, "N", "1: look at 2 x 2 tiles, too; 2: at 4 x 4 more; for small objects"),
        "--min-area": (int, 0, "PIXELS", "remove smaller islands and holes"),
        "--points-per-batch": (count, 64, "N", "most points at once; lower it if memory is short"),
    }
    for name, (kind, default, metavar, text) in numbers.items():
        group.add_argument(
            name, type=kind, default=default, metavar=metavar, help=f"{text} (default: {default})"
        )
    parser.set_defaults(memory_advice="lower --points-per-batch, or take smaller images")


def forms(text: str) -> tuple[str, ...]:
    """Names of `FORMS` by commas, for argparse."""
    names = tuple(dict.fromkeys(text.split(",")))
    if wrong := [name for name in names if name not in FORMS]:
        raise argparse.ArgumentTypeError(f"no form {wrong[0]!r}; known are {', '.join(FORMS)}")
    return names


def run(options) -> int:
    """What was found goes to the standard output, problems to the standard error."""
    from sumlib.data.images import BadSampleError
    from sumlib.pipeline.commands.images import find_images
    from sumlib.pipeline.commands.records import Records

    if not 0 <= options.crop_layers <= 4 or options.min_area < 0:
        raise UsageError("--crop-layers must be 0 to 4, --min-area 0 or more")
    _require_own(options.out)
    top, images = find_images(options.inputs, [options.out / form for form in FORMS])
    finder = Finder(options)
    records = Records(options.out, top, finder.settings)
    waiting = {name for name, path in images.items() if not records.has(name, path)}
    before = len(images) - len(waiting)
    note(f"{counted(len(images), 'image')}, {before} done before; results go to {options.out}")
    problems = {}
    for name in with_bar(list(images), "masks", shown=bool(waiting)):
        try:
            if name in waiting:
                records.write(name, images[name], *finder(images[name]))
            records.draw(name, images[name], options.form)
        except BadSampleError as error:
            problems[name] = str(error)
    done = [name for name in images if name not in problems]
    joins = "coco" in options.form
    total = records.join(done, options.task or "object") if joins else records.count(done)
    return _end(options, total, done, problems)


def _require_own(out: Path) -> None:
    """Raise UsageError for a folder with things of others where results would go."""
    places = [out / name for name in (*FORMS, "coco.json")]
    others = [str(place) for place in places if place.exists()]
    if others and not (out / "records").is_dir():
        raise UsageError(f"{others[0]} was not written by this command: name another folder with --out")


def _end(options, total: int, done: list[str], problems: dict[str, str]) -> int:
    """Say what was found and what was not; returns the exit status."""
    listed = options.out / "problems.json"
    if problems:
        from sumlib.base.files import write_text

        write_text(listed, json.dumps(problems, indent=1, ensure_ascii=False) + "\n")
        for text in problems.values():
            note(f"left out: {text}")
        note(f"{len(problems)} of {counted(len(done) + len(problems), 'image')} left out: see {listed}")
    else:
        listed.unlink(missing_ok=True)
    print(f"{counted(total, 'mask')} in {counted(len(done), 'image')}: {options.out}")
    if done and not total:
        note("no mask passed: lower --pred-iou and --stability, or check that the model fits the images")
    return status_of(len(problems), len(done) + len(problems), options.max_bad)


class Finder:
    """Finds the masks of an image; the model is loaded when the first is asked for."""

    def __init__(self, options):
        from sumlib.pipeline.commands.records import fingerprint

        self.options, self.generator = options, None
        if options.model is None or not options.model.exists():
            from sumlib.pipeline.commands.models import open_model

            open_model(options.model)  # which says where models come from
        names = ("task", "points_per_side", "pred_iou", "stability", "stability_offset", "nms")
        names += ("crop_layers", "min_area")
        self.settings = {name: getattr(options, name) for name in names}
        self.settings |= {"model": options.model.name, "model_content": fingerprint(options.model)}

    def __call__(self, path: Path) -> tuple[tuple[int, int], list[dict]]:
        """(H, W) of the image and the records of its masks."""
        from sumlib.data.images import read_image

        self.generator = self.generator or self._generator()
        image = read_image(path)
        side = self.generator.predictor.model.image_encoder.img_size
        room = 2**30 // (12 * (image.shape[0] * image.shape[1] + side**2))  # three float maps a point: 1 GiB
        self.generator.points_per_batch = max(1, min(self.options.points_per_batch, room))
        return image.shape[:2], self.generator.generate(image)

    def _generator(self):
        from sumlib.model.generator import SumMaskGenerator
        from sumlib.pipeline.commands.models import open_model, task_of

        options = self.options
        model, notes = open_model(options.model, options.device)
        return SumMaskGenerator(
            model,
            task=task_of(options.task, model, notes),
            points_per_side=options.points_per_side,
            pred_iou_thresh=options.pred_iou,
            stability_score_thresh=options.stability,
            stability_score_offset=options.stability_offset,
            box_nms_thresh=options.nms,
            crop_n_layers=options.crop_layers,
            min_mask_region_area=options.min_area,
            output_mode="coco_rle",
        )
