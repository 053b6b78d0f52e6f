"""Every layout is written and read back; the masks that come back are those that were written."""

import ast
import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scenes import SCENES

import sumlib.data.layouts.pairs
import sumlib.data.registry
from sumlib.base.masks import rle_encode, run_total
from sumlib.data import verdicts
from sumlib.data.content import content_hash
from sumlib.data.dataset import Sample
from sumlib.data.images import read_image, read_mask
from sumlib.data.layouts.coco import PACKS, decode
from sumlib.data.registry import REGISTRY, TASK_GROUPS, open_dataset
from sumlib.micro.export import masks_of, write_dataset
from sumlib.micro.truth import open_truth

PACKAGE = Path(sumlib.data.__file__).parent.parent
TASKS = {"salient": 1, "entity": 2, "part": 3}


def as_set(masks) -> set[bytes]:
    return {np.packbits(mask).tobytes() for mask in masks}


def same(found, expected) -> bool:
    return len(found) == len(expected) and as_set(found) == as_set(expected)


LEVELS = [
    (name, level) for level, names in TASK_GROUPS.items() for name in names if name != "Fashionpedia-subpart"
]
LEVELS += [("EntitySeg", "entity"), ("HQSeg-44K", "salient")]
LEVELS += [(f"{group}-{level}", level) for group in ("Internal", "dev") for level in TASKS]


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_round_trip(tmp_path, name, level):
    write_dataset(name, tmp_path, SCENES)
    dataset = open_dataset(name, tmp_path)
    assert (dataset.name, dataset.task, len(dataset)) == (name, TASKS[level], len(SCENES))
    dealt_out = name == "HQSeg-44K"  # read sub-tree by sub-tree
    found = sorted(dataset, key=lambda sample: sample.name[-5:]) if dealt_out else list(dataset)
    for scene, sample in zip(SCENES, found):
        assert same(sample.masks, masks_of(scene, level))
        assert sample.masks.dtype == bool and sample.image.dtype == np.uint8
        assert np.abs(sample.image.astype(int) - scene.image).mean() < 8  # JPEG
    assert dataset.check() == [] and len(dataset.good()) == len(SCENES)


def test_all_names_are_registered():
    tests = [name for names in TASK_GROUPS.values() for name in names]
    assert len(tests) == 14 and set(tests) <= set(REGISTRY)
    for level, names in TASK_GROUPS.items():
        assert {REGISTRY[name].task for name in names} == {TASKS[level]}


def test_equal_scenes_give_equal_bytes(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for name in ("PACO", "EntitySeg-0", "EntitySeg-1"):
        write_dataset(name, one, SCENES)
    for name in ("EntitySeg-1", "PACO", "EntitySeg-0"):  # in another order, and over older files
        write_dataset(name, two, SCENES[:3])
        write_dataset(name, two, SCENES)
    files = [f.relative_to(one) for f in one.rglob("*") if f.is_file()]
    assert files and all((one / f).read_bytes() == (two / f).read_bytes() for f in files)


def test_jpeg_keeps_chroma(tmp_path):
    write_dataset("COIFT", tmp_path, SCENES[:1])
    with Image.open(tmp_path / "test/COIFT/images/00000.jpg") as picture:
        assert {layer[1:3] for layer in picture.layer} == {(1, 1)}  # 4:4:4


def test_hqseg_reads_every_sub_tree(tmp_path):
    write_dataset("HQSeg-44K", tmp_path, SCENES)
    names = open_dataset("HQSeg-44K", tmp_path).names
    trees = {"DIS-TR", "ThinObject5K", "DUTS-TR", "DUTS-TE", "ecssd", "fss_all", "MSRA_10K"}
    assert {name.rpartition("-")[0] for name in names} == trees
    (tmp_path / "HQSeg-44K/cascade_psp/ecssd").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="cascade_psp/ecssd"):
        open_dataset("HQSeg-44K", tmp_path)


def test_entityseg_val_packs_are_separate(tmp_path):
    for k in (2, 0, 1):
        write_dataset(f"EntitySeg-{k}", tmp_path, SCENES[k : k + 2])
    for k in range(3):
        samples = list(open_dataset(f"EntitySeg-{k}", tmp_path))
        assert len(samples) == 2 and all(s.name.startswith(PACKS[k]) for s in samples)
        assert all(same(s.masks, masks_of(scene, "entity")) for s, scene in zip(samples, SCENES[k : k + 2]))


def test_entityseg_falls_back_to_base_name(tmp_path):
    write_dataset("EntitySeg", tmp_path, SCENES[:1])
    path = tmp_path / "EntitySeg/entityseg_train.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = f"{PACKS[0]}/some_inner_folder/00000.jpg"
    path.write_text(json.dumps(content))
    assert len(open_dataset("EntitySeg", tmp_path)[0].masks) == 2


def test_fashionpedia_subpart_is_the_smaller_half(tmp_path):
    write_dataset("Fashionpedia", tmp_path, SCENES)
    sample = open_dataset("Fashionpedia-subpart", tmp_path)[0]
    smallest = sorted(masks_of(SCENES[0], "part"), key=lambda m: m.sum())[:2]
    assert same(sample.masks, smallest)


def test_easyportrait_holds_seven_parts(tmp_path):
    part = np.repeat(np.arange(1, 10, dtype=np.uint8), 4)[None].repeat(20, 0)  # nine stripes
    scene = SimpleNamespace(
        **vars(SCENES[0]) | {"part_map": part, "part_owner": dict.fromkeys(range(1, 10), 1)}
    )
    scene.image, scene.entity_map = np.zeros((20, 36, 3), np.uint8), (part > 0).astype(np.uint8)
    write_dataset("EasyPortrait", tmp_path, [scene])
    assert same(open_dataset("EasyPortrait", tmp_path)[0].masks, [part == k for k in range(1, 8)])


def test_paco_reads_parts_not_objects(tmp_path):
    write_dataset("PACO", tmp_path, SCENES[:1])
    content = json.loads((tmp_path / "test/PACO/paco_lvis_v1_val.json").read_text())
    assert sum(a["id"] == a["obj_ann_id"] for a in content["annotations"]) == 2
    assert len(open_dataset("PACO", tmp_path)[0].masks) == 5


def test_voceval_keys_by_full_stem(tmp_path):
    folder = tmp_path / "test/VOCEVAL"
    folder.mkdir(parents=True)
    for name in ("2007_000033_aeroplane", "2007_000033_person"):
        Image.fromarray(SCENES[0].image).save(folder / f"{name}_im.png")
        Image.fromarray(SCENES[0].salient.astype(np.uint8) * 255).save(folder / f"{name}_gt.png")
    dataset = open_dataset("VOCEVAL", tmp_path)
    assert dataset.names == ["2007_000033_aeroplane", "2007_000033_person"]
    assert (dataset[0].image == SCENES[0].image).all()


def test_mhp_follows_the_list_and_unpadded_ids(tmp_path):
    write_dataset("Bodypart", tmp_path, SCENES)
    listing = tmp_path / "test/LV-MHP-v2/list/val.txt"
    listing.write_text("9\n2\n")
    assert open_dataset("Bodypart", tmp_path).names == ["9", "2"]
    listing.unlink()
    assert open_dataset("Bodypart", tmp_path).names == [str(i) for i in range(1, 10)]
    files = sorted(f.name for f in (tmp_path / "test/LV-MHP-v2/val/parsing_annos").glob("1_*"))
    assert files == ["1_02_01.png", "1_02_02.png"]


def test_group_writes_three_levels_on_the_same_images(tmp_path):
    scenes = [*SCENES[:2], SimpleNamespace(**vars(SCENES[2]) | {"part_map": np.zeros((24, 32), np.uint8)})]
    write_dataset("dev", tmp_path, scenes)
    sizes = [len(open_dataset(f"dev-{level}", tmp_path)) for level in TASKS]
    assert sizes == [3, 3, 2] and len(list((tmp_path / "dev/images").iterdir())) == 3


# SA-1B


def test_sa1b_is_unlabeled_and_its_truth_apart(tmp_path):
    write_dataset("SA-1B", tmp_path, SCENES)
    truth = open_truth(tmp_path)
    for level, dataset in truth.items():
        assert all(same(s.masks, masks_of(scene, level)) for s, scene in zip(dataset, SCENES))
    for file in (tmp_path / "SA-1B-truth").iterdir():
        file.unlink()
    (tmp_path / "SA-1B-truth").rmdir()
    dataset = open_dataset("SA-1B", tmp_path)
    assert dataset.task == 0 and all(s.masks.shape == (0, 24, 32) for s in dataset)
    assert not list((tmp_path / "SA-1B").rglob("*.json"))


@pytest.mark.parametrize("zipped", [False, True])
def test_sa1b_archives(tmp_path, zipped):
    write_dataset("SA-1B", tmp_path, SCENES)
    folder = tmp_path / "SA-1B/sa_000000"
    expected = [s.image for s in open_dataset("SA-1B", tmp_path)]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file in sorted(folder.iterdir(), reverse=True):
            tar.add(file, f"./{file.name}")
            file.unlink()
    folder.rmdir()
    data = buffer.getvalue()
    (tmp_path / "SA-1B/sa_000000.tar").write_bytes(gzip.compress(data) if zipped else data)
    dataset = open_dataset("SA-1B", tmp_path)
    assert dataset.names == [f"sa_{i}" for i in range(9)]
    for i in (5, 0, 8, 3):  # any order
        assert (dataset[i].image == expected[i]).all()


def reachable(package: Path, module: str) -> set[str]:
    """Modules of `package` (named "a.b") that `module` imports, directly or not, itself included."""
    seen, queue = set(), [module]
    while queue:
        name = queue.pop()
        path = package.parent / Path(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in seen or not file.is_file():
            continue
        seen.add(name)
        own = name.split(".") if path.is_dir() else name.split(".")[:-1]
        queue += [".".join(own[:k]) for k in range(1, len(own) + 1)]  # importing a module runs its packages
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                queue += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = own[: len(own) - node.level + 1] if node.level else []
                source = ".".join([*base, *([node.module] if node.module else [])])
                queue += [source, *(f"{source}.{alias.name}" for alias in node.names)]
    return seen


TRUTH = {"sumlib.micro.truth", "sumlib.micro.export"}


@pytest.mark.parametrize(
    "module",
    [
        "train.loop",
        "train.batches",
        "pseudo.store",
        "refiner.training",
        "config.params",
        "evaluate",
        "finetune",
        "data.registry",
    ],
)
def test_training_never_reaches_the_truth(module):
    modules = reachable(PACKAGE, f"sumlib.{module}")
    assert modules, f"sumlib/{module} is missing"
    assert modules.isdisjoint(TRUTH)


def test_only_its_own_modules_name_the_truth():
    words = ("SA-1B-truth", "open_truth", "TRUTH_FOLDER", "micro.truth", "micro import truth")
    for file in PACKAGE.rglob("*.py"):
        if file.name not in (
            "truth.py",
            "export.py",
            "inputs.py",
        ):  # what stages depend on names every folder
            assert not any(word in file.read_text() for word in words), file


@pytest.mark.parametrize(
    "line",
    [
        "from sumlib.micro import truth",
        "import sumlib.micro.truth",
        "from .micro.truth import x",
        "from sumlib import helper",
    ],
)
def test_reaching_the_truth_would_be_seen(tmp_path, line):
    package = tmp_path / "sumlib"
    (package / "micro").mkdir(parents=True)
    for name, text in (
        ("__init__", ""),
        ("micro/__init__", ""),
        ("micro/truth", ""),
        ("train", f"def f():\n    {line}\n"),
    ):
        (package / f"{name}.py").write_text(text)
    (package / "helper.py").write_text("from .micro import truth\n")
    assert "sumlib.micro.truth" in reachable(package, "sumlib.train")


# files and formats


def test_image_is_turned_upright_and_rgb(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # stored sideways: turn by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert (read_image(tmp_path / "a.png") == np.rot90(pixels, -1)).all()
    Image.fromarray(pixels[..., 0]).save(tmp_path / "gray.png")
    assert (read_image(tmp_path / "gray.png") == pixels[..., :1]).all()


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "RGBA", "LA", "I;16"])
def test_mask_modes(tmp_path, mode):
    truth = SCENES[0].salient
    picture = Image.fromarray(truth.astype(np.uint8) * 255)
    if mode == "I;16":
        picture = Image.fromarray(truth.astype(np.uint16) * 65535)
    elif mode == "P":
        picture = Image.fromarray(truth.astype(np.uint8), "P")
        picture.putpalette([0, 0, 0, 255, 255, 255])
    else:
        picture = picture.convert(mode)
    picture.save(tmp_path / "m.png")
    assert (read_mask(tmp_path / "m.png") == truth).all()
    assert (read_mask(tmp_path / "m.png", threshold=128) == truth).all()


def test_mask_scale_is_detected_or_stated(tmp_path):
    values = np.array([[0, 1, 0, 1]], np.uint8)
    Image.fromarray(values).save(tmp_path / "small.png")
    assert (read_mask(tmp_path / "small.png") == values).all()
    Image.fromarray(np.array([[0, 127, 128, 129, 255]], np.uint8)).save(tmp_path / "soft.png")
    assert read_mask(tmp_path / "soft.png", 128).tolist() == [[False, False, False, True, True]]
    assert read_mask(tmp_path / "soft.png", 127).tolist() == [[False, False, True, True, True]]


def test_coco_segmentations():
    square = np.zeros((6, 8), bool)
    square[1:4, 2:5] = True
    assert (decode([[2, 1, 5, 1, 5, 4, 2, 4]], 6, 8) == square).all()
    assert (
        decode({"size": [6, 8], "counts": [13, 3, 3, 3, 3, 3, 20]}, 6, 8) == square
    ).all()  # column by column
    assert not decode([], 6, 8).any() and not decode(None, 6, 8).any()
    assert not decode([[2, 1, 5, 4]], 6, 8).any()  # two corners are no polygon, nor a box
    with pytest.raises(ValueError, match="the image"):
        decode({"size": [8, 6], "counts": [48]}, 6, 8)


def test_run_total_agrees_with_masks():
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 5), (300, 211)):
        for density in (0.0, 0.02, 0.5, 1.0):
            counts = rle_encode(rng.random((height, width)) < density)["counts"]
            assert run_total(counts) == run_total(counts.encode()) == height * width
    assert run_total(counts + "5") != run_total(counts)
    assert run_total("P") == run_total("z~") == -1  # ends in "more follows"; not a code


def test_dataset_is_lazy_and_picklable(tmp_path):
    write_dataset("Fashionpedia", tmp_path, SCENES)
    for image in (tmp_path / "test/Fashionpedia/test").iterdir():
        image.unlink()
    dataset = open_dataset("Fashionpedia", tmp_path)  # reads no image
    assert len(pickle.loads(pickle.dumps(dataset))) == len(dataset[:4]) + len(dataset[4:]) == 9


def test_a_set_is_read_through_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(verdicts, "WORTH", 2)
    for function in (verdicts.recall, verdicts.remember):
        monkeypatch.setattr(function, "__defaults__", (tmp_path / "checked",))
    write_dataset("COIFT", tmp_path, SCENES)
    image = tmp_path / "test/COIFT/images/00003.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[:40])
    opened, real = [], sumlib.data.layouts.pairs.read_image
    monkeypatch.setattr(
        sumlib.data.layouts.pairs, "read_image", lambda path: opened.append(path) or real(path)
    )

    def checked():
        opened.clear()
        dataset = open_dataset("COIFT", tmp_path)
        return dataset.check(), dataset.good().names, dataset.report(), len(opened)

    first, again = checked(), checked()
    assert first[3] == len(SCENES) and again[3] == 0 and again[:3] == first[:3]
    assert (
        [bad.name for bad in first[0]] == ["00003"]
        and "00003" not in first[1]
        and "1 bad samples" in first[2]
    )
    image.write_bytes(whole)
    mended = checked()
    assert mended[0] == [] and mended[3] == len(SCENES)
    mask = tmp_path / "test/COIFT/masks/00000.png"
    mask.write_bytes(mask.read_bytes()[:30])
    assert [bad.path for bad in checked()[0]] == [mask]
    (next(iter((tmp_path / "checked").iterdir()))).write_text("[[")  # cut short: read anew
    assert [bad.path for bad in checked()[0]] == [mask]
    assert len(open_dataset("COIFT", tmp_path)[:1].check()) == 1  # too small to be kept


def test_single_masks_that_are_left_out_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(verdicts, "WORTH", 2)
    for function in (verdicts.recall, verdicts.remember):
        monkeypatch.setattr(function, "__defaults__", (tmp_path / "checked",))
    write_dataset("PACO", tmp_path, SCENES[:3])
    path = tmp_path / "test/PACO/paco_lvis_v1_val.json"
    content = json.loads(path.read_text())
    part = next(a for a in content["annotations"] if a["id"] != a["obj_ann_id"])
    part["segmentation"] = []
    path.write_text(json.dumps(content))
    first, again = (open_dataset("PACO", tmp_path) for _ in range(2))
    assert first.check() == again.check() and first.report() == again.report()
    assert "0 bad samples, 1 single masks left out" in again.report()


def test_what_the_machine_could_not_read_once_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(verdicts, "WORTH", 2)
    for function in (verdicts.recall, verdicts.remember):
        monkeypatch.setattr(function, "__defaults__", (tmp_path / "checked",))
    write_dataset("COIFT", tmp_path, SCENES)
    for error in (
        OSError(24, "Too many open files"),
        PermissionError(13, "Permission denied"),
        MemoryError(),
    ):

        def open_none(*args, error=error):
            raise error

        with monkeypatch.context() as full:
            full.setattr("sumlib.data.images.Image.open", open_none)
            assert len(open_dataset("COIFT", tmp_path).check()) == len(SCENES)
    assert not (tmp_path / "checked").exists()
    assert open_dataset("COIFT", tmp_path).check() == [] and len(list((tmp_path / "checked").iterdir())) == 1


def test_the_hash_of_a_set_is_of_tasks_too():
    image, masks = np.zeros((2, 2, 3), np.uint8), np.ones((1, 2, 2), bool)
    salient, again, part = (content_hash([Sample("a", image, masks, task, "x")]) for task in (1, 1, 3))
    assert salient == again != part
