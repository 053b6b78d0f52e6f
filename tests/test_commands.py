"""The command line: masks of images good and bad, one object's mask, wrong usage; on the micro model."""

import json
import os
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from sumlib.base.paths import ROOT, SAMPLE
from sumlib.methods.hq_sam import HqSum
from sumlib.model.checkpoint import load_sam, save_sum
from sumlib.model.generator import SumMaskGenerator
from sumlib.model.predictor import SumPredictor
from sumlib.model.sum import Sum
from sumlib.pipeline.commands.main import build_parser, main
from sumlib.refiner.module import Refiner, save_refiner

MICRO = SAMPLE / "foundation" / "sam.safetensors"
MODEL = ["--model", str(MICRO), "--device", "cpu"]
EASY = ["--points-per-side", "4", "--pred-iou", "0.5", "--stability", "0.6"]
COMMANDS = ("check", "masks", "predict", "export", "report")


def picture(height: int = 60, width: int = 90) -> np.ndarray:
    """A bright disc before a gradient, (H, W, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    values = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 60)], -1)
    values[np.hypot(y - height / 2, x - width / 3) < height / 4] = (250, 240, 90)
    return values.astype(np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two images, one of them in a folder and with a name that is not ASCII, and what is no image."""
    photos = tmp_path / "photos"
    (photos / "día 1").mkdir(parents=True)
    Image.fromarray(picture()).save(photos / "disc.png")
    Image.fromarray(picture()[::-1, ::-1]).save(photos / "día 1" / "Übung.jpg", quality=95)
    (photos / "notes.txt").write_text("no image")
    (photos / ".hidden.png").write_text("no image")
    return photos


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def masks(folder, out, *more) -> int:
    return main(["masks", str(folder), "--out", str(out), *MODEL, *EASY, *more])


def test_masks_are_the_generators_in_every_form(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert masks(folder, out, "--form", "coco,labels,masks,overlay") == 0
    said = capsys.readouterr()
    generator = SumMaskGenerator(
        Sum(load_sam("micro", MICRO)), 4, pred_iou_thresh=0.5, stability_score_thresh=0.6
    )
    expected = generator.generate(picture())
    assert len(expected) > 1
    record = json.loads((out / "records" / "disc.json").read_text())
    assert record["image"] == {"file_name": "disc.png", "height": 60, "width": 90}
    coco = COCO(out / "coco.json")
    capsys.readouterr()
    assert {image["file_name"] for image in coco.imgs.values()} == {"disc.png", "día 1/Übung.jpg"}
    (number,) = (key for key, image in coco.imgs.items() if image["file_name"] == "disc.png")
    found = coco.loadAnns(coco.getAnnIds(number))
    files = sorted((out / "masks" / "disc").iterdir())
    assert len(record["annotations"]) == len(found) == len(files) == len(expected)
    for one, other, file in zip(found, expected, files):
        mask = other["segmentation"]
        assert np.array_equal(coco.annToMask(one), mask) and np.array_equal(read(file), mask * 255)
        assert one["area"] == mask.sum() and one["bbox"] == other["bbox"]
        assert one["score"] == other["predicted_iou"]
    labels = read(out / "labels" / "disc.png")
    smallest = min(range(len(expected)), key=lambda k: expected[k]["area"])
    assert labels.dtype == np.uint16 and (labels[expected[smallest]["segmentation"]] == smallest + 1).all()
    assert np.array_equal(labels > 0, np.any([e["segmentation"] for e in expected], 0))
    over = read(out / "overlay" / "disc.png")
    assert over.shape[2] == 3 and over.shape[0] / over.shape[1] == 60 / 90 and len(np.unique(over)) > 9
    assert (out / "labels" / "día 1" / "Übung.png").is_file()
    assert (
        re.search(rf"{len(coco.anns)} masks in 2 images", said.out) and "2 images, 0 done before" in said.err
    )


def test_what_is_done_is_not_done_again(folder, tmp_path, capsys):
    out = tmp_path / "out"
    times = lambda: {p.name: p.stat().st_mtime_ns for p in (out / "records").rglob("*.json")}
    assert masks(folder / "disc.png", out) == 0
    first = times()
    assert masks(folder, out) == 0 and "2 images, 1 done before" in capsys.readouterr().err
    both = times()
    assert both["disc.json"] == first["disc.json"] and len(both) == 2
    assert masks(folder, out, "--form", "labels") == 0 and times() == both  # pictures come from the records
    assert (out / "labels" / "disc.png").is_file() and (out / "coco.json").is_file()
    assert masks(folder, out, "--nms", "0.5") == 0
    other = times()
    assert all(other[name] > both[name] for name in both)
    os.utime(folder / "disc.png", ns=(1, 1))
    assert masks(folder, out, "--nms", "0.5") == 0
    assert times()["disc.json"] > other["disc.json"] and times()["Übung.json"] == other["Übung.json"]


def test_results_inside_the_folder_are_no_images_and_names_stay_apart(folder, capsys):
    Image.fromarray(picture()).save(folder / "disc.bmp")
    for _ in range(2):
        assert masks(folder, folder / "out", "--form", "masks,overlay") == 0
        assert "masks in 3 images" in capsys.readouterr().out
    names = {path.name for path in (folder / "out" / "records").iterdir()}
    assert names == {"disc.png.json", "disc.bmp.json", "día 1"}


def test_what_others_left_where_results_would_go_is_not_touched(folder, capsys):
    own = folder / "masks" / "disc"
    own.mkdir(parents=True)
    (own / "1.png").write_bytes(b"mine")
    assert masks(folder, folder, "--form", "masks") == 2
    assert "masks was not written by this command" in capsys.readouterr().err
    assert [path.name for path in own.iterdir()] == ["1.png"] and not (folder / "records").exists()


def test_bad_images_are_listed_and_counted_and_the_good_ones_done(folder, tmp_path, capsys):
    out = tmp_path / "out"
    (folder / "cut.jpg").write_bytes((folder / "día 1" / "Übung.jpg").read_bytes()[:300])
    assert masks(folder, out, "--max-bad", "0.2") == 3
    said = capsys.readouterr()
    assert "1 of 3 images left out" in said.err and "cut.jpg: file is truncated" in said.err
    assert list(json.loads((out / "problems.json").read_text())) == ["cut"] and "in 2 images" in said.out
    assert masks(folder, out, "--max-bad", "0.5") == 0
    (folder / "cut.jpg").unlink()
    assert masks(folder, out) == 0 and not (out / "problems.json").exists()


def test_no_mask_is_said(folder, tmp_path, capsys):
    assert masks(folder / "disc.png", tmp_path, "--pred-iou", "1", "--form", "coco,labels,overlay") == 0
    said = capsys.readouterr()
    assert "0 masks in 1 image:" in said.out and "lower --pred-iou" in said.err
    assert not COCO(tmp_path / "coco.json").anns and not read(tmp_path / "labels" / "disc.png").any()


def test_predict_writes_what_the_predictor_gives(folder, tmp_path, capsys):
    image, out = folder / "disc.png", tmp_path / "out"
    given = ["--point", "30,30", "--out", str(out), *MODEL]
    assert main(["predict", str(image), *given, "--uncertainty"]) == 0
    said = capsys.readouterr().out
    predictor = SumPredictor(Sum(load_sam("micro", MICRO)))
    predictor.set_image(picture())
    found, scores, _, certainty = predictor.predict([[30, 30]], [1], return_uncertainty=True)
    best = scores.argmax()
    assert np.array_equal(read(out / "disc_mask.png"), found[best] * 255) and found[best].any()
    assert np.abs(read(out / "disc_certainty.png") / 255 - certainty[best]).max() <= 0.5 / 255 + 1e-6
    record = json.loads((out / "disc.json").read_text())
    (mask,) = record["masks"]
    assert mask["predicted_iou"] == pytest.approx(scores[best]) and mask["area"] == found[best].sum()
    assert record["points"] == [[30, 30, 1]] and str(out / "disc_overlay.png") in said
    assert main(["predict", str(image), *given, "--all"]) == 0
    for k in range(3):
        assert np.array_equal(read(out / f"disc_mask_{k}.png"), found[k] * 255)
    boxed = ["--box", "50,45,10,12", "--point", "30,30", "--point", "80,5,0"]
    assert main(["predict", str(image), *boxed, "--out", str(out), *MODEL]) == 0
    single, _, _ = predictor.predict(
        [[30, 30], [80, 5]], [1, 0], box=[10, 12, 50, 45], multimask_output=False
    )
    assert np.array_equal(read(out / "disc_mask.png"), single[0] * 255)


def test_task_and_refiner_of_a_tuned_model(folder, tmp_path, capsys):
    model = Sum(load_sam("micro", MICRO))
    with torch.no_grad():
        model.task_prompt.weight[2] = torch.linspace(-1, 1, 128)
    save_sum(tmp_path / "sum.safetensors", model, {"model_type": "micro"})
    refiner = Refiner.of(model)
    with torch.no_grad():
        refiner.network.sam.mask_decoder.iou_token.weight += 1
    save_refiner(tmp_path / "refiner.safetensors", refiner, {})
    predictor = SumPredictor(model, refiner=refiner.eval())
    predictor.set_image(picture())
    for task, number in (("entity", 2), ("3", 3)):
        given = ["--task", task, "--model", str(tmp_path / "sum.safetensors"), "--device", "cpu"]
        given += ["--uncertainty", "--refiner", str(tmp_path / "refiner.safetensors"), "--out", str(tmp_path)]
        assert main(["predict", str(folder / "disc.png"), "--point", "30,30", *given]) == 0
        found, scores, _, certainty = predictor.predict([[30, 30]], [1], task=number, return_uncertainty=True)
        best = scores.argmax()
        assert np.array_equal(read(tmp_path / "disc_mask.png"), found[best] * 255)
        assert np.abs(read(tmp_path / "disc_certainty.png") / 255 - certainty[best]).max() < 0.01
        learned = "has learned nothing for the task '3'" not in capsys.readouterr().err
        assert learned == (number == 2)


def test_checkpoints_are_recognised_by_what_is_in_them(folder, tmp_path):
    for kind in ("micro", "micro_b"):
        torch.save(load_sam(kind).state_dict(), tmp_path / f"{kind}.pth")
    save_sum(tmp_path / "hq.safetensors", HqSum(load_sam("micro")), {"model_type": "micro"})
    for file in ("micro.pth", "micro_b.pth", "hq.safetensors"):
        given = ["--point", "30,30", "--out", str(tmp_path), "--model", str(tmp_path / file)]
        assert main(["predict", str(folder / "disc.png"), *given]) == 0
    easy = ["--points-per-side", "2", "--pred-iou", "0", "--stability", "0"]
    assert main(["masks", str(folder), "--out", str(tmp_path), "--model", given[-1], *easy]) == 0
    assert json.loads((tmp_path / "records" / "disc.json").read_text())["annotations"]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "the same command goes on"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 1, "out of memory: lower --points-per-batch"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
    ],
    ids=["stopped", "memory", "disk"],
)
def test_after_an_end_in_the_middle_the_same_command_goes_on(
    error, status, words, folder, tmp_path, capsys, monkeypatch
):
    whole, done = SumMaskGenerator.generate, []

    def fails_at_the_second(self, image):
        if done:
            raise error
        done.append(image)
        return whole(self, image)

    with monkeypatch.context() as patch:
        patch.setattr(SumMaskGenerator, "generate", fails_at_the_second)
        assert masks(folder, tmp_path / "out") == status
    assert words in capsys.readouterr().err
    assert masks(folder, tmp_path / "out") == 0
    assert "2 images, 1 done before" in capsys.readouterr().err
    assert {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()} == {".json"}


def test_check_reads_a_project_and_counts(folder, tmp_path, capsys):
    project = tmp_path / "leaves"
    for name in ("images", "masks"):
        (project / name).mkdir(parents=True)
    for k in range(4):
        Image.fromarray(np.roll(picture(), 9 * k, 1)).save(project / "images" / f"{k}.png")
        Image.fromarray(((picture()[..., 0] == 250) * 255).astype(np.uint8)).save(
            project / "masks" / f"{k}.png"
        )
    assert main(["check", str(project)]) == 0 and "4 images, 4 masks" in capsys.readouterr().out
    Image.fromarray(np.zeros((60, 90), np.uint8)).save(project / "masks" / "2.png")
    assert main(["check", str(project), "--max-bad", "0.2"]) == 3
    assert main(["check", str(project), "--max-bad", "0.3"]) == 0
    assert main(["check", str(tmp_path / "no")]) == 1


def test_export_writes_a_plain_sam_with_the_task(tmp_path, capsys):
    model = Sum(load_sam("micro", MICRO))
    with torch.no_grad():
        model.task_prompt.weight[3] = 0.25
    save_sum(tmp_path / "sum.safetensors", model, {"model_type": "micro"})
    given = ["export", str(tmp_path / "sum.safetensors"), "--form", "pth", "--task", "part"]
    assert main([*given, "--out", str(tmp_path / "part.pth")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'part.pth'}\n"
    sam = load_sam("micro", tmp_path / "part.pth")
    added = sam.prompt_encoder.no_mask_embed.weight - model.sam.prompt_encoder.no_mask_embed.weight
    assert torch.allclose(added, torch.tensor(0.25))
    assert main([*given, "--out", str(tmp_path / "part.safetensors")]) == 1


def test_report_says_where_nothing_was_run(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert str(tmp_path / "results") in (said := capsys.readouterr().err) and "run the project" in said


IMAGE, OUT, BROKEN = "disc.png", "out", "broken.pth"
PREDICT, MASKS, CLICK = ["predict", IMAGE], ["masks", IMAGE, "--out", OUT], ["--point", "5,5"]
WRONG = {
    "no command": ([], 2, "COMMAND"),
    "unknown command": (["mask"], 2, "invalid choice"),
    "no model": ([*PREDICT, *CLICK], 2, "name a model with --model. Models come from https://"),
    "no model for masks": (MASKS, 2, "name a model with --model. Models come from https://"),
    "missing model": ([*PREDICT, *CLICK, "--model", "no.pth"], 2, "no.pth: there is no such model"),
    "broken model": ([*PREDICT, *CLICK, "--model", BROKEN], 1, "broken.pth: truncated, or not"),
    "no prompt": ([*PREDICT, *MODEL], 2, "with --point or --box"),
    "point outside": ([*PREDICT, *MODEL, "--point", "90,5"], 2, "outside of the image, 90 x 60 pixels"),
    "box outside": ([*PREDICT, *MODEL, "--box", "95,5,99,9"], 2, "outside of the image"),
    "no point": ([*PREDICT, *MODEL, "--point", "9"], 2, "is not X,Y or X,Y,0"),
    "label of a point": ([*PREDICT, *MODEL, "--point", "9,9,2"], 2, "is not X,Y or X,Y,0"),
    "no box": ([*PREDICT, *MODEL, "--box", "1,2,3"], 2, "is not X0,Y0,X1,Y1"),
    "task": ([*PREDICT, *MODEL, *CLICK, "--task", "tree"], 2, "no task 'tree'; known are unspecified"),
    "device": ([*PREDICT, *CLICK, *MODEL[:2], "--device", "abacus"], 2, "--device abacus: cannot compute"),
    "refiner": ([*PREDICT, *MODEL, *CLICK, "--refiner", "no.safetensors"], 2, "is for --uncertainty"),
    "no image": (["predict", "no.png", *MODEL, *CLICK], 1, "no.png: file is missing"),
    "empty folder": (["masks", "empty", "--out", OUT, *MODEL], 2, "no image in"),
    "no folder": (["masks", "no", "--out", OUT, *MODEL], 2, "there is no "),
    "form": ([*MASKS, *MODEL, "--form", "coco,tiff"], 2, "no form 'tiff'; known are coco, labels"),
    "threshold": ([*MASKS, *MODEL, "--pred-iou", "88"], 2, "88 is not from 0 to 1"),
    "layers": ([*MASKS, *MODEL, "--crop-layers", "9"], 2, "--crop-layers must be 0 to 4"),
}
"""Arguments of calls that go wrong, with the exit status and what is said."""


@pytest.mark.parametrize(("arguments", "status", "words"), WRONG.values(), ids=WRONG)
def test_wrong_calls_say_what_to_do(arguments, status, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture()).save(IMAGE)
    Path("empty").mkdir()
    Path(BROKEN).write_bytes(b"<html>404 Not Found</html>")
    assert main(arguments) == status
    said = capsys.readouterr()
    assert words in said.err and "Traceback" not in said.err and not said.out
    assert not Path(OUT).exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_an_example_that_parses(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert main(["--help"]) == 0 and f"\n    {command}  " in capsys.readouterr().out
    examples = re.findall(rf"^  sumlib ({command} .*?)(?:   .*)?$", text, re.MULTILINE)
    assert examples
    for example in examples:
        assert callable(build_parser().parse_args(example.split()).run)


def test_the_entry_point_is_installed_with_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, function = project["scripts"]["sumlib"].split(":")
    assert (module, function) == (main.__module__, main.__name__)
