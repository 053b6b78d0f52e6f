"""Automatic masks against the official generator; the Parquet file, resumed runs, refined maps, reading."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.utils.amg import rle_to_mask
from small import changed_package

from sumlib.base.code import modules_used
from sumlib.base.paths import SAMPLE
from sumlib.config.params import PseudoLabelConfig
from sumlib.data.dataset import Dataset, Entry
from sumlib.micro.world import Style, make_scene
from sumlib.model.checkpoint import load_sam
from sumlib.model.micro_sam import build_sam_micro
from sumlib.model.sum import Sum
from sumlib.pseudo import store
from sumlib.pseudo.automatic import AutomaticMasks
from sumlib.pseudo.store import PseudoLabels, add_uncertainty, decode_map, encode_map, generate, map_logits


@pytest.fixture(scope="module")
def model():
    """An untrained micro SAM whose logits are spread enough for masks of many sizes."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Sum(build_sam_micro(width=32, depth=2, channels=32)).eval()
    for mlp in model.sam.mask_decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight.data *= 40
    model.sam.mask_decoder.iou_prediction_head.layers[-1].weight.data *= 10
    model.sam.mask_decoder.iou_prediction_head.layers[-1].bias.data += 2.0
    return model


@pytest.fixture(scope="module")
def config(model):
    """Thresholds that a part of the candidates fail, so that every filter has work to do."""
    everything = PseudoLabelConfig(6, 0.0, 0.0, 0.1, 1.0, 1.0, None)
    images = [scene(5), scene(5)[40:]]
    found = [AutomaticMasks(model, everything)(embed(model, image), image.shape[:2]) for image in images]
    scores, stability = (torch.cat([each[key] for each in found]) for key in ("iou_preds", "stability_score"))
    least = scores.median()
    return PseudoLabelConfig(
        6, least.item(), stability[scores > least].quantile(0.3).item(), 0.1, 0.8, 1.0, None
    )


def scene(seed: int) -> np.ndarray:
    return make_scene(np.random.default_rng(seed), Style()).image


def embed(model: Sum, image: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return model.encode(model.preprocess(image)[None])


def unlabeled(count: int) -> Dataset:
    def entry(k: int) -> Entry:
        image = scene(k)[: 64 - 8 * (k % 2)]  # square and oblong images
        return Entry(
            f"sa_{k}", Path(f"sa_{k}.jpg"), lambda: (image, np.zeros((0, *image.shape[:2]), bool), {})
        )

    return Dataset("SA-1B", 0, [entry(k) for k in range(count)])


@pytest.mark.parametrize("crop", [slice(None), slice(40)], ids=["square", "oblong"])
def test_masks_are_those_of_the_official_generator(crop):
    """On the shipped foundation model: same masks, points and scores, in the same order."""
    config = PseudoLabelConfig(8, 0.6, 0.75, 1.0, 0.8, 1.0, None)
    model, image = Sum(load_sam("micro", SAMPLE / "foundation" / "sam.safetensors")).eval(), scene(5)[crop]
    find = AutomaticMasks(model, config, batch=50)
    ours = find(embed(model, image), image.shape[:2])
    official = SamAutomaticMaskGenerator(
        model.sam,
        points_per_side=8,
        pred_iou_thresh=config.pred_iou_thresh,
        stability_score_thresh=config.stability_thresh,
        stability_score_offset=config.stability_offset,
        box_nms_thresh=config.nms_thresh,
        output_mode="uncompressed_rle",
    ).generate(image)
    counts = find.tally.counts
    assert (
        counts["candidates"]
        == 192
        > counts["predicted_iou"]
        > counts["stability"]
        == counts["area"]
        > counts["nms"]
        == len(official)
        >= 3
    )
    assert (
        find.tally.histograms["predicted_iou"].sum() == 192
        and find.tally.histograms["stability"].sum() == counts["predicted_iou"]
    )
    assert np.allclose(ours["iou_preds"], [item["predicted_iou"] for item in official], atol=1e-5)
    assert np.allclose(ours["stability_score"], [item["stability_score"] for item in official], atol=1e-3)
    assert np.allclose(ours["points"], [item["point_coords"][0] for item in official])
    differing = [
        np.sum(mask != rle_to_mask(item["segmentation"]))
        for mask, item in zip(ours["masks"].numpy(), official)
    ]
    assert sum(differing) <= 1  # a logit may change its sign by rounding
    x0, y0, x1, y1 = ours["boxes"].T
    assert np.array_equal(torch.stack([x0, y0, x1 - x0, y1 - y0], 1), [item["bbox"] for item in official])
    assert torch.equal(model.upscale(ours["low"][:, None], image.shape[:2])[:, 0] > 0, ours["masks"])


def test_large_masks_are_dropped(model, config):
    found = AutomaticMasks(model, dataclasses.replace(config, max_area_fraction=0.3))(
        embed(model, scene(5)), (64, 64)
    )
    assert len(found["area"]) and found["area"].max() < 0.3 * 64 * 64


def test_maps_keep_the_mask_and_half_a_step_of_the_probability():
    logits = torch.linspace(-9, 9, 4 * 5).view(1, 4, 5)
    values = torch.from_numpy(decode_map(encode_map(logits)[0]))[None]
    assert torch.equal(values >= 128, logits > 0)
    assert (values / 255 - logits.sigmoid()).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.allclose(map_logits(values)[0, 1:3], logits[0, 1:3].clamp(-6.24, 6.24), atol=0.5)


def test_a_killed_run_resumes_to_the_same_bytes(model, config, tmp_path, monkeypatch):
    images = unlabeled(5)
    monkeypatch.setattr(store, "BLOCK", 2)
    tally = generate(model, images, config, tmp_path / "whole.parquet", progress=False)
    assert tally.images == 5 and tally.counts["nms"] == len(pq.read_table(tmp_path / "whole.parquet"))
    assert not list(tmp_path.glob("*.parts")) and not list(tmp_path.glob("*.tmp"))

    def killed(model, samples, find, real=store._rows):
        if samples[0].name == "sa_4":
            raise KeyboardInterrupt
        return real(model, samples, find)

    monkeypatch.setattr(store, "_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        generate(model, images, config, tmp_path / "a.parquet", parts=tmp_path / "parts", progress=False)
    assert not (tmp_path / "a.parquet").exists() and len(list((tmp_path / "parts").iterdir())) == 2
    monkeypatch.undo()
    monkeypatch.setattr(store, "BLOCK", 2)
    made, real = [], store._rows
    monkeypatch.setattr(
        store,
        "_rows",
        lambda model, samples, find: made.append(samples[0].name) or real(model, samples, find),
    )
    generate(model, images, config, tmp_path / "a.parquet", parts=tmp_path / "parts", progress=False)
    assert made == ["sa_4"]
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_parts_of_another_configuration_are_made_again(model, config, tmp_path, monkeypatch, capsys):
    images = unlabeled(3)
    monkeypatch.setattr(store, "BLOCK", 2)
    monkeypatch.setattr(store, "remove_files", lambda folder, files: None)  # of a finished run
    generate(model, images, config, tmp_path / "a.parquet", parts=tmp_path / "parts", progress=False)
    assert "starting anew" not in capsys.readouterr().out
    strict = dataclasses.replace(config, max_area_fraction=0.3)
    generate(model, images, strict, tmp_path / "b.parquet", parts=tmp_path / "parts", progress=False)
    assert capsys.readouterr().out.count("starting anew") == 1  # though both parts are of another
    assert (
        PseudoLabels(tmp_path / "b.parquet", refined=False).table(["area"])["area"].to_numpy().max()
        < 0.3 * 64 * 64
    )
    assert (
        PseudoLabels(tmp_path / "a.parquet", refined=False).table(["area"])["area"].to_numpy().max()
        >= 0.3 * 64 * 64
    )


def test_a_damaged_part_is_made_again_and_nothing_else_is_removed(
    model, config, tmp_path, monkeypatch, capsys
):
    parts, whole = tmp_path / "parts", tmp_path / "whole.parquet"
    with monkeypatch.context() as kept:
        kept.setattr(store, "remove_files", lambda folder, files: None)
        generate(model, unlabeled(2), config, whole, parts=parts, progress=False)
    (part,) = parts.iterdir()
    content = bytearray(part.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)  # its footer is whole
    part.write_bytes(content)
    (parts / "mine.txt").write_text("a file of mine")
    generate(model, unlabeled(2), config, tmp_path / "a.parquet", parts=parts, progress=False)
    assert (tmp_path / "a.parquet").read_bytes() == whole.read_bytes()
    assert "00000000.parquet: is damaged, or of another" in capsys.readouterr().out
    assert [path.name for path in parts.iterdir()] == ["mine.txt"]


def test_a_file_that_is_damaged_inside_is_named(model, files, tmp_path):
    for source, read in (
        (files[1], PseudoLabels),
        (files[0], lambda path: add_uncertainty(path, tmp_path / "o", model, None, unlabeled(3))),
    ):
        content = bytearray(source.read_bytes())
        content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
        (tmp_path / "broken.parquet").write_bytes(content)
        with pytest.raises(ValueError, match=r"(?s)broken\.parquet: cannot be read .*run `dvc repro pseudo"):
            read(tmp_path / "broken.parquet")
    assert not list(tmp_path.glob("o*"))


@pytest.mark.parametrize(
    ("module", "old", "new", "same"),
    [
        ("model/fast_decoder.py", "return ", "return 2 * ", False),
        ("model/fast_decoder.py", '"""', '"""Other words. ', True),
        ("report/claims.py", "return ", "return 2 * ", True),
    ],
)
def test_parts_of_another_decoder_are_made_again(
    model, config, tmp_path, monkeypatch, module, old, new, same
):
    before = store._fingerprint(model, config)
    monkeypatch.setattr("sumlib.base.code.ROOT", changed_package(tmp_path, module, old, new))
    assert (store._fingerprint(model, config) == before) == same


def test_parts_of_other_code_are_made_again(model, config, tmp_path, monkeypatch):
    assert {"sumlib.model.sum", "sumlib.model.fast_decoder", "sumlib.pseudo.automatic"} <= set(
        modules_used("sumlib.pseudo.store")
    )
    monkeypatch.setattr(store, "remove_files", lambda folder, files: None)  # of a finished run
    made, real = [], store._rows
    monkeypatch.setattr(store, "_rows", lambda *args: made.append(1) or real(*args))
    for code in ("one", "one", "two"):
        monkeypatch.setattr(store, "code_hash", lambda *modules, code=code: code)
        generate(
            model, unlabeled(2), config, tmp_path / "a.parquet", parts=tmp_path / "parts", progress=False
        )
    assert len(made) == 2  # kept for the same code, made again for another


@pytest.fixture(scope="module")
def files(model, config, tmp_path_factory) -> tuple[Path, Path]:
    """Pseudo-labels of three images, and the same with half of the logits as refined maps."""
    folder = tmp_path_factory.mktemp("pseudo")
    generate(model, unlabeled(3), config, folder / "masks.parquet", progress=False)

    def halve(embeddings, logits, boxes, points):
        assert embeddings.shape[0] == len(logits) == len(boxes) == len(points) and boxes.shape[1] == 4
        inside = logits[torch.arange(len(points)), points[:, 1].long(), points[:, 0].long()]
        assert logits.shape[1:] == (64, 64) and inside.shape == (len(points),)
        return logits / 2 - 0.5

    add_uncertainty(
        folder / "masks.parquet", folder / "small.parquet", model, halve, unlabeled(3), progress=False
    )
    return folder / "masks.parquet", folder / "small.parquet"


@pytest.mark.parametrize("memory", [2**20, 0], ids=["cached", "from disk"])
def test_what_is_read_is_what_was_found(model, config, files, memory):
    labels, images = PseudoLabels(files[1], memory=memory), unlabeled(3)
    assert labels.images == images.names and labels.record["images"] == len(labels) == 3
    for sample in images:
        found = AutomaticMasks(model, config)(embed(model, sample.image), sample.image.shape[:2])
        for label in (labels[sample.name], labels[sample.name]):
            height, width = sample.image.shape[:2]
            assert np.array_equal(label.masks, found["masks"]) and label.masks.dtype == bool
            s = found["low"][:, :height, :width]
            r = map_logits((255 * s.sigmoid()).round()) / 2 - 0.5
            assert (
                label.certainty.shape == label.refined.shape == label.masks.shape
                and label.certainty.dtype == np.float32
            )
            assert (
                np.abs(label.certainty - (1 - (s.sigmoid() - r.sigmoid()).abs()).numpy()).max() < 1.01 / 255
            )
            assert np.array_equal(label.refined[(r.abs() > 0.02).numpy()], (r > 0)[r.abs() > 0.02])
            assert np.allclose(label.points, found["points"]) and np.allclose(label.boxes, found["boxes"])
            assert np.allclose(label.predicted_iou, found["iou_preds"]) and np.allclose(
                label.stability, found["stability_score"]
            )


def test_errors_name_the_file_and_the_remedy(model, files, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.parquet.*dvc repro pseudo_label"):
        PseudoLabels(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match=r"masks\.parquet: has no refined maps; run `dvc repro uncertainty`"):
        PseudoLabels(files[0])
    assert PseudoLabels(files[0], refined=False)["sa_0"].refined is None
    with pytest.raises(KeyError, match="no masks of image 'sa_9'"):
        PseudoLabels(files[1])["sa_9"]
    (tmp_path / "cut.parquet").write_bytes(files[1].read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cut\.parquet: not a complete Parquet file"):
        PseudoLabels(tmp_path / "cut.parquet")
    with pytest.raises(ValueError, match="image 'sa_1' is not in SA-1B"):
        add_uncertainty(
            files[0], tmp_path / "out.parquet", model, lambda e, s, b, p: s, unlabeled(1), progress=False
        )
    assert not (tmp_path / "out.parquet").exists()


@pytest.fixture(scope="module")
def many(model, tmp_path_factory) -> tuple[Path, Path]:
    """As ``files``, with several masks an image."""
    folder = tmp_path_factory.mktemp("many")
    everything = PseudoLabelConfig(3, 0.0, 0.0, 0.1, 1.0, 1.0, None)
    generate(model, unlabeled(3), everything, folder / "masks.parquet", progress=False)
    add_uncertainty(
        folder / "masks.parquet",
        folder / "small.parquet",
        model,
        lambda embeddings, logits, boxes, points: logits / 2 - 0.5,
        unlabeled(3),
        progress=False,
    )
    return folder / "masks.parquet", folder / "small.parquet"


def test_single_rows_are_decoded_as_all_of_them(many):
    labels = PseudoLabels(many[1])
    for name in labels.images:
        whole = labels[name]
        rows = list(range(len(whole.masks)))[::-1] + [0]
        part = labels.read(name, rows)
        for field in dataclasses.fields(whole):
            assert np.array_equal(getattr(part, field.name), getattr(whole, field.name)[rows]), field.name
        assert labels.areas(name, "sam").tolist() == whole.masks.sum((1, 2)).tolist()
        assert labels.areas(name, "refined").tolist() == whole.refined.sum((1, 2)).tolist()
        assert labels.size(name) == whole.masks.shape[1:]


@pytest.mark.parametrize("size", [[37, 90], [200, 133]])
def test_a_map_scaled_alone_has_the_bits_of_a_map_scaled_among_others(size):
    values = np.random.default_rng(0).integers(0, 256, (5, 64, 64), dtype=np.uint8)
    whole = store._full_size(values, size)
    assert whole.shape == (5, *size)
    assert all(np.array_equal(store._full_size(values[[k]], size)[0], whole[k]) for k in range(5))


def test_drawing_decodes_only_what_is_drawn(many, monkeypatch):
    labels, decoded = PseudoLabels(many[1]), []
    monkeypatch.setattr(
        store, "rle_decode", lambda rle, real=store.rle_decode: decoded.append(1) or real(rle)
    )
    name = max(labels.images, key=lambda name: len(labels.areas(name, "sam")))
    assert len(labels.areas(name, "sam")) > 2 and not decoded
    labels.read(name, [1, 0])
    assert len(decoded) == 2


def changed(path: Path, output: Path, column: str, value, row: int = 1) -> Path:
    """A copy of a file of pseudo-labels with another value in one row."""
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[row] = value(values[row]) if callable(value) else value
    place = table.schema.get_field_index(column)
    field = table.schema.field(place)
    pq.write_table(table.set_column(place, field, pa.array(values, field.type)), output)
    return output


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("mask_rle", None, "has no mask_rle"),
        ("mask_rle", "", "has no mask_rle"),
        ("mask_rle", lambda text: text[:-1], "run lengths"),
        ("mask_rle", "zzz~", "run lengths are broken"),
        ("mask_rle", "04", "run lengths cover 4 pixels"),
        ("logits_png", None, "has no logits_png"),
        ("logits_png", b"GIF89a", "logits_png is no whole PNG"),
        ("refined_png", b"", "has no refined_png"),
        ("refined_png", lambda png: png[:-9], "refined_png is no whole PNG"),
        ("size_h", None, "has no size_h"),
        ("size_h", 63, "not the image's size"),
        ("size_w", 2**31 - 1, "not the image's size"),
        ("size_w", -64, "not the image's size"),
        ("point_x", float("nan"), "its point_x is nan"),
        ("box_y1", float("inf"), "its box_y1 is inf"),
        ("predicted_iou", None, "has no predicted_iou"),
        ("area", 0, "has an area of 0 pixels"),
    ],
)
def test_a_broken_row_is_named_with_its_file(model, many, tmp_path, column, value, words):
    path = changed(many[1], tmp_path / "broken.parquet", column, value)
    labels = PseudoLabels(path)
    with pytest.raises(
        ValueError, match=rf"broken\.parquet: row 1 \(image 'sa_0'\) .*{words}.*dvc repro pseudo_label"
    ):
        labels["sa_0"]
    if column != "refined_png":
        masks = changed(many[0], tmp_path / "broken.parquet", column, value)
        with pytest.raises(ValueError, match=rf"broken\.parquet: row 1 \(image 'sa_0'\) .*{words}"):
            add_uncertainty(masks, tmp_path / "o", model, lambda e, s, b, p: s, unlabeled(3), progress=False)
        assert not list(tmp_path.glob("o*"))


def test_a_row_without_image_and_a_map_cut_short_are_named(many, tmp_path):
    with pytest.raises(ValueError, match=r"broken\.parquet: row 1 .*has no image"):
        PseudoLabels(changed(many[1], tmp_path / "broken.parquet", "image", None))
    for column in ("logits_png", "refined_png"):
        labels = PseudoLabels(
            changed(many[1], tmp_path / "broken.parquet", column, lambda png: png[:20] + png[-12:])
        )
        with pytest.raises(
            ValueError, match=r"broken\.parquet: a mask of image 'sa_0' is no 8-bit grey PNG; run"
        ):
            labels["sa_0"]


def test_a_column_of_another_type_is_named(files, tmp_path):
    table = pq.read_table(files[1])
    place = table.schema.get_field_index("size_h")
    table = table.set_column(place, "size_h", table["size_h"].cast("string"))
    pq.write_table(table, tmp_path / "types.parquet")
    with pytest.raises(ValueError, match=r"types\.parquet: column size_h holds string, not int32"):
        PseudoLabels(tmp_path / "types.parquet")
    table = pq.read_table(files[1]).replace_schema_metadata({})
    pq.write_table(table, tmp_path / "plain.parquet")
    with pytest.raises(ValueError, match=r"plain\.parquet: does not say what was counted"):
        PseudoLabels(tmp_path / "plain.parquet")


def test_logits_that_are_no_numbers_are_refused_with_the_images_name(model, files, tmp_path):
    logits = torch.zeros(3, 4, 4)
    logits[1, 2, 2] = float("nan")
    with pytest.raises(ValueError, match="logits of mask 1 hold NaN"):
        encode_map(logits)
    logits[1, 2, 2] = float("inf")
    assert decode_map(encode_map(logits)[1])[2, 2] == 255

    def broken(embeddings, logits, boxes, points):
        return logits.where(logits.amax() < -1e9, float("nan"))

    with pytest.raises(ValueError, match="image 'sa_0': a refined map holds NaN; train the refiner anew"):
        add_uncertainty(files[0], tmp_path / "o.parquet", model, broken, unlabeled(3), progress=False)
    assert not (tmp_path / "o.parquet").exists()


def test_a_model_that_holds_no_numbers_is_refused(config, tmp_path):
    model = Sum(build_sam_micro(width=32, depth=2, channels=32)).eval()
    name, weight = list(model.named_parameters())[3]
    weight.data.flatten()[0] = float("nan")
    with pytest.raises(ValueError, match=f"weight {name} holds NaN or infinity"):
        generate(model, unlabeled(1), config, tmp_path / "a.parquet", progress=False)
    assert not list(tmp_path.glob("*.parquet"))


def test_an_image_that_has_changed_its_size_is_refused(model, files, tmp_path):
    images = unlabeled(3)
    whole = images[0].image
    images._entries[0] = Entry(
        "sa_0", Path("sa_0.jpg"), lambda: (whole[:32], np.zeros((0, 32, whole.shape[1]), bool), {})
    )
    with pytest.raises(
        ValueError, match=r"masks\.parquet: image 'sa_0' is 32 x 64, its masks were made at 64 x 64"
    ):
        add_uncertainty(files[0], tmp_path / "o.parquet", model, lambda e, s, b, p: s, images, progress=False)
