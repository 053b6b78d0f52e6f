"""`sumlib predict`: the mask of one object in one image, from points and a box."""

import argparse
import json
from pathlib import Path

from sumlib.base.files import write_text
from sumlib.pipeline.commands.common import OK, UsageError, add_command, add_model

TEXT = """\
Segment one object of an image from points and a box.

Writes NAME_mask.png (255 inside), NAME_overlay.png (the mask over the image, with the prompt) and NAME.json
(scores and prompt) to the folder --out. One point alone may mean a thing or its part: the model then gives
three masks, and the one with the best predicted score is taken; --all writes all three.
"""
EXAMPLE = """\
  sumlib predict cat.jpg --model sam_vit_b_01ec64.pth --point 210,140 --point 300,90,0 --out out/
  sumlib predict cat.jpg --model sum.safetensors --box 40,30,380,300 --task entity --uncertainty
"""


def add(commands) -> None:
    """Add the command's arguments."""
    parser = add_command(commands, "predict", TEXT, EXAMPLE, run)
    parser.add_argument("image", type=Path, metavar="IMAGE", help="the image's file")
    parser.add_argument(
        "--point",
        type=point,
        action="append",
        default=[],
        metavar="X,Y[,0]",
        help="a pixel inside the object, from the upper left corner; with ,0 one outside; may be repeated",
    )
    parser.add_argument(
        "--box", type=box, metavar="X0,Y0,X1,Y1", help="two opposite corners of a box around the object"
    )
    parser.add_argument("--all", action="store_true", help="write all three masks")
    parser.add_argument(
        "--uncertainty",
        action="store_true",
        help="write NAME_certainty.png, too: how certain each pixel is, 0 (black) to 1 (white)",
    )
    parser.add_argument(
        "--refiner",
        type=Path,
        metavar="FILE",
        help="refinement module of the model for --uncertainty, which compares its masks with the model's "
        "(default: the model's own confidence)",
    )
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="default: here")
    add_model(parser)


def point(text: str) -> tuple[float, float, int]:
    """ "X,Y" or "X,Y,LABEL", for argparse.

    >>> point("3,4"), point("3.5,4,0")
    ((3.0, 4.0, 1), (3.5, 4.0, 0))
    """
    parts = text.split(",")
    try:
        x, y, label = (float(part) for part in [*parts, "1"][:3])
    except ValueError:
        label = None
    if label not in (0, 1) or len(parts) > 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y or X,Y,0 in pixels")
    return x, y, int(label)


def box(text: str) -> tuple[float, float, float, float]:
    """ "X0,Y0,X1,Y1" of any two opposite corners -> upper left and lower right, for argparse.

    >>> box("9,2,1,8")
    (1.0, 2.0, 9.0, 8.0)
    """
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not X0,Y0,X1,Y1 in pixels") from None
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def run(options) -> int:
    """The files written go to the standard output, one a line, then the scores."""
    if not options.point and options.box is None:
        raise UsageError("say which object is meant, with --point or --box")
    if options.refiner and not options.uncertainty:
        raise UsageError("--refiner is for --uncertainty, which is not asked for")
    from sumlib.data.images import read_image

    image = read_image(options.image)
    _require_inside(options, *image.shape[:2])
    masks, scores, certainty = _predicted(options, image)
    order = sorted(range(len(scores)), key=lambda k: -scores[k])
    shown = order if options.all else order[:1]
    record = {
        "image": options.image.name,
        "model": str(options.model),
        "task": options.task,
        "points": options.point,
        "box": options.box,
        "masks": [_written(options, image, masks, scores, certainty, k) for k in shown],
    }
    path = _path(options, ".json")
    write_text(path, json.dumps(record, indent=1) + "\n")
    print(path)
    for entry in record["masks"]:
        print(f"{entry['mask']}: predicted IoU {entry['predicted_iou']:.3f}, {entry['area']} pixels")
    return OK


def _require_inside(options, height: int, width: int) -> None:
    """Raise UsageError for a prompt that is not inside the image."""
    for x, y, _ in options.point:
        if not (0 <= x < width and 0 <= y < height):
            raise UsageError(f"--point {x:g},{y:g} is outside of the image, {width} x {height} pixels")
    if options.box is not None:
        x0, y0, x1, y1 = options.box
        if not (x0 < width and y0 < height and x1 >= 0 and y1 >= 0):
            raise UsageError(f"--box lies outside of the image, {width} x {height} pixels")


def _predicted(options, image) -> tuple:
    """Masks (K, H, W) bool, scores (K,) and certainty (K, H, W) or None."""
    import numpy as np

    from sumlib.model.predictor import SumPredictor
    from sumlib.pipeline.commands.models import open_model, task_of
    from sumlib.refiner.module import load_refiner

    model, notes = open_model(options.model, options.device)
    refiner = None
    if options.refiner:
        refiner = load_refiner(options.refiner, model)[0].to(model.sam.device)
    predictor = SumPredictor(model, task=task_of(options.task, model, notes), refiner=refiner)
    predictor.set_image(image)
    points = np.array(options.point).reshape(-1, 3)
    alone = len(points) == 1 and options.box is None
    found = predictor.predict(
        points[:, :2] if len(points) else None,
        points[:, 2] if len(points) else None,
        options.box,
        multimask_output=alone or options.all,
        return_uncertainty=options.uncertainty,
    )
    return found[0], found[1].tolist(), found[3] if options.uncertainty else None


def _path(options, ending: str) -> Path:
    return options.out / f"{options.image.stem}{ending}"


def _written(options, image, masks, scores: list[float], certainty, k: int) -> dict:
    """Write the pictures of the k-th mask; what the record says of it."""
    from sumlib.pipeline.commands.pictures import map_picture, mask_picture, overlay_picture, save_picture

    number = f"_{k}" if options.all else ""
    over = overlay_picture(image, [masks[k]], points=options.point, box=options.box)
    paths = {
        "mask": save_picture(_path(options, f"_mask{number}.png"), mask_picture(masks[k])),
        "overlay": save_picture(_path(options, f"_overlay{number}.png"), over),
    }
    entry = {"predicted_iou": scores[k], "area": int(masks[k].sum())}
    if certainty is not None:
        paths["certainty"] = save_picture(
            _path(options, f"_certainty{number}.png"), map_picture(certainty[k])
        )
        entry["mean_certainty"] = float(certainty[k].mean())
    for path in paths.values():
        print(path)
    return {name: path.name for name, path in paths.items()} | entry
