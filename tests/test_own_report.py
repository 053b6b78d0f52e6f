"""The report says what the numbers say, leaves out what is missing, and can be written again."""

import re
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from own_models import SURE, foundation, held_out, pushed, unlabeled

from sumlib.model.checkpoint import save_sum
from sumlib.model.micro_sam import build_sam_micro
from sumlib.model.sum import Sum
from sumlib.pipeline.own.evaluation import compared, evaluate_own, scores
from sumlib.pipeline.own.keep import choose_keep, learning_curve
from sumlib.pipeline.own.probe import Extent, ask, make_probe, summary
from sumlib.pipeline.own.report import (
    HUMAN,
    Results,
    Weights,
    draw_examples,
    draw_uncertainty,
    headline,
    keep_fields,
    read_results,
    write_report,
)
from sumlib.pipeline.own.report.pictures import cut, picture
from sumlib.pipeline.own.report.snippets import weights_section
from sumlib.pseudo.store import PseudoLabels, add_uncertainty, generate


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("a project") / "out"


@pytest.fixture(scope="module")
def results(folder) -> Results:
    """All that a report can hold, from small models."""
    sam = foundation()
    models = {"SAM": sam, HUMAN: pushed(sam, 0.4), "SUM": pushed(sam, 0.3)}
    data, images, place = held_out(6), unlabeled(4), folder / "results"
    probe = make_probe(sam, images, SURE, extent=Extent(masks=5), trained=["photo 1"], progress=False)
    table = evaluate_own(models, data, rounds=(1, 3), tasks={2: "leaf"}, progress=False)
    choice = choose_keep(models["SUM"], sam, data, probe, grid=(0.5, 1), rounds=(1, 3), progress=False)
    masks = place / "masks.parquet"
    generate(sam, images, SURE, masks, progress=False)
    add_uncertainty(masks, place / "refined.parquet", sam, lambda e, s, b, p: 0.3 * s, images, progress=False)
    return Results(
        name="leaves & <stems>",
        about={"train_images": 9, "train_masks": 30, "model_type": "micro", "device": "CPU"},
        held_out=table,
        extra=table.assign(dataset="other leaves"),
        probe=pd.concat([ask(model, probe, name=name, progress=False) for name, model in models.items()]),
        **keep_fields(choice),
        learning_curve=learning_curve(lambda n: pushed(sam, 0.02 * n), [2, 4], data, sam, progress=False),
        examples=draw_examples(models, data, table, place, count=2, least=0)
        + draw_uncertainty(PseudoLabels(place / "refined.parquet"), images, place, count=2),
        skipped=pd.DataFrame(
            [("empty masks", "leaf|1", "masks/leaf 1.png", "mask is empty; remove it")] * 2
            + [("broken", "NA", "x", "<b>is broken</b>")],
            columns=["kind", "name", "file", "reason"],
        ),
        weights=(
            Weights("pth", "sum.pth", 5_000_000, "leaf"),
            Weights("safetensors", "sum.safetensors", 5_000_000),
        ),
        stages=pd.DataFrame({"stage": ["tune"], "seconds": [75.0], "memory_mb": [2500.0]}),
        settings={"finetune": {"lr": 1e-5, "theta": None}, "keep": "choose"},
        versions={"torch": "2.15"},
        tasks={"leaf": 2},
    )


@pytest.fixture(scope="module")
def written(folder, results) -> tuple[str, str]:
    markdown, page = write_report(folder, results)
    assert markdown == folder / "report.md" and page == folder / "report.html"
    return markdown.read_text(encoding="utf-8"), page.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Text, pictures and open tags of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.sources, self.alts, self.words, self.tags = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.sources.append(dict(attrs)["src"])
            self.alts.append(dict(attrs)["alt"])
        elif tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_is_one_whole_file(written):
    page = Page(written[1])
    assert not page.open and not {"script", "link", "iframe"} & set(page.tags)
    assert page.sources and all(source.startswith("data:image/") for source in page.sources)
    assert all(page.alts) and "http" not in re.sub(r"data:[^\"]+", "", written[1])
    text = "".join(page.words)
    assert "leaves & <stems>: your SAM" in text and "<b>is broken</b>" in text


def test_both_files_say_the_same(written):
    markdown, page = written[0], "".join(Page(written[1]).words)
    titles = re.findall(r"^## (.+)$", markdown, re.MULTILINE)
    assert len(titles) == 13 and all(title in page for title in titles)
    cells = re.findall(r"\| ([^|\n]+?) (?=\|)", markdown)
    plain = [cell.replace("**", "").replace("`", "") for cell in cells if not re.search(r"---|!\[", cell)]
    assert len(plain) > 150 and not [cell for cell in plain if cell not in page]


def test_pictures_of_the_markdown_are_there(folder, written):
    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", written[0])
    assert len(links) >= 4 + 4 and all((folder / link).is_file() for link in links)


def test_numbers_are_those_of_the_tables(results, written):
    rows = compared(results.held_out, "SUM", "SAM")
    first = rows[(rows["round"] == 1) & (rows["metric"] == "mIoU")].iloc[0]
    value = scores(results.held_out).set_index(["model", "metric", "round"])["value"]
    agreed = summary(results.probe).iloc[0]
    assert f"{first['value']:+.1f} ({first['low']:+.1f} to {first['high']:+.1f})" in written[0]
    assert f"| **{value['SUM', 'mBIoU', 3]:.1f}** |" in written[0]
    assert (
        f"to {agreed['iou']:.1f} % (95 % interval {agreed['low']:.1f} to {agreed['high']:.1f})" in written[0]
    )
    assert "1 of the 4 images were used in training" in written[0]
    assert "1 min 15 s" in written[0] and "2 x empty masks" in written[0] and "leaf\\|1" in written[0]


def test_results_are_read_as_they_were_written(folder, results, written):
    again = read_results(folder / "results")
    for one in fields(Results):
        new, old = getattr(again, one.name), getattr(results, one.name)
        if isinstance(old, pd.DataFrame):
            pd.testing.assert_frame_equal(new, old.reset_index(drop=True), check_dtype=False, rtol=1e-6)
        elif one.name != "keep":
            assert new == old
    before = [(folder / name).read_bytes() for name in ("report.md", "report.html")]
    write_report(folder)
    assert before == [(folder / name).read_bytes() for name in ("report.md", "report.html")]


def test_missing_parts_are_left_out(tmp_path, results):
    write_report(tmp_path, Results("leaves", probe=results.probe))
    bare = Results("leaves", held_out=results.held_out[results.held_out["model"] != "SUM"])
    text = write_report(tmp_path, bare)[0].read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Held-out masks: before and after"]
    assert "Nothing was measured" in text and not (tmp_path / "results" / "probe.parquet").exists()
    assert read_results(tmp_path / "results").probe is None
    empty = write_report(tmp_path, Results("leaves"))[0].read_text(encoding="utf-8")
    assert "## " not in empty


def test_two_images_get_numbers_without_intervals(tmp_path, results):
    few = results.held_out[results.held_out["image"].isin(["image0", "image1"])]
    text = write_report(tmp_path, Results("leaves", held_out=few))[0].read_text(encoding="utf-8")
    assert "2 images are too few (at least 5)" in text and "fewer than 5 images say too little" in text
    row = next(line for line in text.splitlines() if line.startswith("| 3 points"))
    assert " to " not in row and re.search(r"[+-]\d+\.\d", row)


def test_results_that_are_not_there_or_broken_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the project first"):
        write_report(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "results.json").write_text('{"version": 1}')
    with pytest.raises(ValueError, match=r"results.json: cannot be used .* last stage again"):
        write_report(tmp_path)


# ---- the headline -------------------------------------------------------------------------------


def made_up(changes: list[float], images: int | None = None) -> pd.DataFrame:
    """Rows of two models whose IoU differs by ``changes``, one an image."""
    rows = [
        {
            "model": model,
            "dataset": "d",
            "task": "leaf",
            "image": f"i{k % (images or 99)}",
            "mask": k,
            "round": 1,
            "photo": f"i{k % (images or 99)}",
        }
        | {"iou": 0.5 + (change if model == "SUM" else 0), "biou": 0.5}
        for model in ("SAM", "SUM")
        for k, change in enumerate(changes)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("changes", "images", "said"),
    [
        (
            [0.05, 0.06, 0.04, 0.05, 0.05, 0.05],
            None,
            "**It got better.** On 6 held-out images SUM gains +5.0 points",
        ),
        ([-0.05, -0.06, -0.04, -0.05, -0.05], None, "**It got worse.** On 5 held-out images"),
        ([0.2, -0.15, 0.1, -0.12, 0.01], None, "**Nothing is shown.** On 5 held-out images"),
        ([0.05] * 12, 3, "fewer than 5 images say too little about others"),
        ([0.05] * 12, 1, "On 1 held-out image the change"),
    ],
)
def test_the_headline_claims_what_the_interval_shows(changes, images, said):
    assert said in headline(Results("leaves", held_out=made_up(changes, images)))[0]


def test_a_share_chosen_on_the_same_images_must_stand_the_honest_count():
    better = Results("leaves", held_out=made_up([0.05] * 6))
    better.keep = {"keep": 0.5, "chosen": True, "honest": {"value": 2.0, "low": 1.0, "high": 3.0}}
    assert "It got better" in headline(better)[0] and "50 % of the tuning is kept" in headline(better)[-1]
    better.keep["honest"]["low"] = -1.0
    assert (
        "Nothing is shown" in headline(better)[0]
        and "+2.0 (95 % interval -1.0 to +3.0)" in headline(better)[0]
    )
    better.keep["chosen"] = False
    assert "It got better" in headline(better)[0]
    better.keep["keep"] = 0
    assert "Keep SAM as it is" in headline(better)[-1]


# ---- pictures and snippets ----------------------------------------------------------------------


def test_examples_are_the_extremes_one_an_image(results):
    table = results.held_out[results.held_out["round"] == 1].set_index(["image", "mask"])
    change = table.loc[table["model"] == "SUM", "iou"] - table.loc[table["model"] == "SAM", "iou"]
    worst = [one for one in results.examples if one.kind == "worse"]
    image, mask = change.idxmin()
    assert f"`{image}`, mask {mask + 1}:" in worst[0].caption
    assert [title.split(":")[0] for title, _ in worst[0].pictures] == [
        "image and click",
        "SAM",
        "SUM",
        "truth",
    ]
    assert len({one.caption.split("`")[1] for one in worst}) == len(worst) <= 2


def test_a_picture_shows_the_mask_where_it_is():
    image = np.full((400, 300, 3), 200, np.uint8)
    mask = np.zeros((400, 300), bool)
    mask[100:140, 200:230] = True
    top, bottom, left, right = box = cut(mask, (210, 120))
    assert top <= 100 and bottom >= 140 and left <= 200 and right >= 230 and bottom - top == right - left
    drawn = picture(image, box, mask, "#0000FF")
    scale = drawn.shape[0] / (bottom - top)
    inside = drawn[round((120 - top + 0.5) * scale), round((215 - left + 0.5) * scale)].astype(int)
    assert scale == int(scale) and 300 <= drawn.shape[0] <= 400 and inside[2] > inside[0] + 80
    assert (drawn[2, 2] > 215).all()
    assert cut(np.zeros((4, 6), bool)) == (0, 4, 0, 6)


def test_the_snippet_for_sumlib_works_as_it_stands(tmp_path, monkeypatch):
    from PIL import Image

    path = tmp_path / "sum.safetensors"
    save_sum(path, Sum(build_sam_micro()), {"model_type": "micro"})
    Image.fromarray(np.zeros((300, 400, 3), np.uint8)).save(tmp_path / "photo.jpg")
    section = weights_section(
        Results("leaves", weights=(Weights("safetensors", "sum.safetensors"),), tasks={"leaf": 2})
    )
    code, names = section.blocks[-1].text, {}
    monkeypatch.chdir(tmp_path)
    exec(code, names)
    assert names["mask"].shape == (300, 400) and "task=2" in code
