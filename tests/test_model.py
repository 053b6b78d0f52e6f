"""The model: SAM's output bit for bit, several images in a batch, SAM's tools, checkpoints good and bad."""

import hashlib
from functools import partial

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
from small import small_sum

from sumlib.model import checkpoint as module
from sumlib.model.checkpoint import (
    MODEL_TYPES,
    CheckpointError,
    build_like,
    load_sam,
    load_sum,
    read_metadata,
    save_sam,
    save_sum,
)
from sumlib.model.micro_sam import build_sam_micro
from sumlib.model.predictor import SumPredictor
from sumlib.model.sum import Sum, decoder_copy


@pytest.fixture(scope="module")
def micro() -> Sum:
    """The micro architecture with random weights, and task vectors that are not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Sum(build_sam_micro()).eval()
        torch.nn.init.normal_(model.task_prompt.weight)
    return model


@pytest.fixture(scope="module")
def vit_b():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return sam_model_registry["vit_b"]()


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def embeddings(model, count, seed=0):
    return draw(
        count, model.task_prompt.embedding_dim, *model.sam.prompt_encoder.image_embedding_size, seed=seed
    )


def prompts(model, count, kind):
    """Prompts of one kind inside the input frame, as keyword arguments of `Sum.decode`."""
    side = model.sam.image_encoder.img_size
    given = {}
    if "point" in kind:
        given["points"] = draw(count, 3, 2, seed=5).sigmoid() * side
        given["labels"] = torch.tensor([[1, 0, -1]]).expand(count, -1)
    if "box" in kind:
        given["boxes"] = draw(count, 2, 2, seed=6).sigmoid().mul(side).sort(1).values.flatten(1)
    if "mask" in kind:
        given["mask_inputs"] = draw(count, 1, *model.sam.prompt_encoder.mask_input_size, seed=7)
    return given


def decoded_by_sam(sam, embedding, *, points=None, labels=None, boxes=None, mask_inputs=None):
    """What SAM's own encoder and decoder of prompts give for an image (1, C, h, w): one, then three."""
    sparse, dense = sam.prompt_encoder(
        points=None if points is None else (points, labels), boxes=boxes, masks=mask_inputs
    )
    outputs = [
        sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=many)
        for many in (False, True)
    ]
    return tuple(torch.cat(parts, 1) for parts in zip(*outputs))


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


KINDS = ["point", "box", "point+box", "mask", "point+mask", "box+mask", "point+box+mask"]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_untrained_sum_is_sam_bit_for_bit(micro, kind):
    model = Sum(micro.sam)
    one, given = embeddings(model, 1), prompts(model, 3, kind)
    expected = decoded_by_sam(model.sam, one, **given)
    assert expected[0].shape == (3, 4, 64, 64) and expected[1].shape == (3, 4)
    assert_same(model.decode(one.expand(3, -1, -1, -1), **given), expected)
    assert_same(model.decode(one.expand(3, -1, -1, -1), tasks=torch.tensor([1, 2, 3]), **given), expected)


@pytest.mark.parametrize("kind", ["point", "point+box+mask"])
@torch.no_grad()
def test_untrained_sum_is_vit_b_bit_for_bit(vit_b, kind):
    model = Sum(vit_b)
    one, given = embeddings(model, 1), prompts(model, 1, kind)
    logits, scores = model.decode(one, tasks=torch.tensor([1]), **given)
    assert logits.shape == (1, 4, 256, 256) and one.shape == (1, 256, 64, 64)
    assert_same((logits, scores), decoded_by_sam(vit_b, one, **given))


@pytest.mark.parametrize("size", [(64, 64), (48, 64), (90, 37), (201, 333)])
@torch.no_grad()
def test_pixels_to_masks_as_the_official_predictor(micro, size):
    image = photo(*size)
    predictor = SamPredictor(micro.sam)
    seen = []
    hook = micro.sam.image_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    predictor.set_image(image)
    hook.remove()
    pixels = micro.preprocess(image)
    assert pixels.shape == (3, 64, 64) and torch.equal(pixels[None], seen[0])
    assert micro.input_size(*size) == predictor.input_size
    point, box = np.array([[size[1] / 3, size[0] / 2]]), np.array([1, 2, size[1] - 5, size[0] - 3])
    expected, scores, low = predictor.predict(point, np.array([1]), box, return_logits=True)
    logits, iou = micro.decode(
        micro.encode(pixels[None]),
        points=micro.to_input_frame(torch.from_numpy(point)[None], size),
        labels=torch.tensor([[1]]),
        boxes=micro.to_input_frame(torch.from_numpy(box)[None], size),
    )
    assert np.array_equal(logits[0, 1:].numpy(), low) and np.array_equal(iou[0, 1:].numpy(), scores)
    upscaled = micro.upscale(logits[:, 1:], size)
    assert upscaled.shape == (1, 3, *size) and np.array_equal(upscaled[0].numpy(), expected)


def test_preprocess_takes_views_and_refuses_other_images(micro):
    image = photo(64, 64)
    assert torch.equal(micro.preprocess(image[..., ::-1]), micro.preprocess(image[..., ::-1].copy()))
    for bad in (image[..., 0], image / 255, np.concatenate([image, image[..., :1]], -1)):
        with pytest.raises(ValueError, match="uint8 RGB"):
            micro.preprocess(bad)


def test_upscale_is_free_where_sizes_are_equal(micro):
    logits = draw(2, 4, 64, 64)
    same = micro.upscale(logits, (64, 64))
    assert torch.equal(same, logits) and same.data_ptr() == logits.data_ptr()
    assert torch.equal(same, micro.sam.postprocess_masks(logits, (64, 64), (64, 64)))


def test_upscale_and_input_frame_of_vit_b(vit_b):
    model = Sum(vit_b)
    logits = draw(1, 1, 256, 256)
    assert model.input_size(300, 400) == (768, 1024)
    assert torch.equal(
        model.upscale(logits, (300, 400)), vit_b.postprocess_masks(logits, (768, 1024), (300, 400))
    )
    assert model.to_input_frame(torch.tensor([[100, 50, 200, 150]]), (300, 400)).tolist() == [
        [256, 128, 512, 384]
    ]
    assert model.to_input_frame(torch.tensor([[[100, 50]]]), (300, 400)).tolist() == [[[256, 128]]]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_prompts_of_two_images_in_one_batch(micro, kind):
    image, given = torch.tensor([0, 1, 0, 1, 1]), prompts(micro, 5, kind)
    each, tasks = embeddings(micro, 2)[image], torch.tensor([1, 0, 2, 3, 1])
    logits, scores = micro.decode(each, tasks=tasks, **given)
    for b in (0, 1):
        rows = image == b
        alone = micro.decode(
            each[rows], tasks=tasks[rows], **{name: value[rows] for name, value in given.items()}
        )
        torch.testing.assert_close((logits[rows], scores[rows]), alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_mixed_kinds_in_one_batch(micro):
    one, side = embeddings(micro, 1), 64
    given = prompts(micro, 1, "point+box")
    point, box = given["points"][:, :1], given["boxes"]
    xy = torch.cat(
        [torch.cat([point, torch.zeros(1, 1, 2)], 1), box.view(1, 2, 2), torch.full((1, 2, 2), side / 2.0)]
    )
    codes = torch.tensor([[1, -1], [2, 3], [0, -1]])
    logits, scores = micro.decode_codes(one.expand(3, -1, -1, -1), xy, codes)
    for row, alone in enumerate(
        (
            micro.decode(one, points=point, labels=torch.tensor([[1]])),
            micro.decode(one, boxes=box),
            micro.decode(one, points=xy[2:, :1], labels=torch.tensor([[0]])),
        )
    ):
        torch.testing.assert_close(
            (logits[row : row + 1], scores[row : row + 1]), alone, rtol=1e-4, atol=1e-4
        )
    with pytest.raises(ValueError, match="both or neither"):
        micro.decode(one, points=point)


def test_task_vector_changes_the_output_only_when_given(micro):
    image, given = photo(64, 64), {"point_coords": np.array([[20, 30]]), "point_labels": np.array([1])}
    official, predictor = SamPredictor(micro.sam), SumPredictor(micro)
    official.set_image(image), predictor.set_image(image)
    expected = official.predict(**given, return_logits=True)
    first = predictor.predict(**given, return_logits=True, task=1)
    for plain, sam, one in zip(predictor.predict(**given, return_logits=True), expected, first):
        assert np.array_equal(plain, sam) and not np.array_equal(one, sam)
    one = official.features
    with torch.no_grad():
        logits, _ = micro.decode(
            one, points=torch.tensor([[[20.0, 30.0]]]), labels=torch.tensor([[1]]), tasks=torch.tensor([1])
        )
    assert np.array_equal(logits[0, 1:].numpy(), first[2])
    for bad in (-1, 4):
        with pytest.raises(ValueError, match="0 to 3"):
            predictor.predict(**given, task=bad)
    with pytest.raises(RuntimeError, match="image must be set"):
        SumPredictor(micro).predict(**given, task=1)


@torch.no_grad()
def test_a_decoder_copy_decodes_the_same_and_shares_nothing(micro):
    copy, one = decoder_copy(micro), embeddings(micro, 1)
    given = prompts(micro, 1, "point") | {"tasks": torch.tensor([1])}
    assert all(
        torch.equal(a, b) for a, b in zip(copy.decode(copy.encode(one), **given), micro.decode(one, **given))
    )
    assert not {p.data_ptr() for p in copy.parameters()} & {p.data_ptr() for p in micro.parameters()}


@pytest.mark.parametrize(("model_type", "blocks"), [("micro", 6), ("micro_l", 4), ("micro_b", 2)])
def test_micro_backbones_differ_in_depth_alone(model_type, blocks):
    sam = load_sam(model_type)
    assert len(sam.image_encoder.blocks) == blocks and len(build_like(sam).image_encoder.blocks) == blocks
    assert (
        sam.image_encoder.blocks[-1].window_size == 0
        and sam.mask_decoder.state_dict().keys() == load_sam("micro").mask_decoder.state_dict().keys()
    )


def test_no_fresh_sam_of_an_unknown_architecture():
    with pytest.raises(ValueError, match="fit none of micro"):
        build_like(small_sum().sam)


def test_gradients_reach_the_task_of_the_prompt_alone():
    model = small_sum()
    logits, _ = model.decode(embeddings(model, 2), **prompts(model, 2, "box"), tasks=torch.tensor([1, 1]))
    logits.square().mean().backward()
    assert model.task_prompt.weight.grad.abs().sum(1).gt(0).tolist() == [False, True, False, False]


@torch.no_grad()
def test_coordinates_stay_exact_under_autocast(micro):
    seen = []
    hook = micro.sam.mask_decoder.transformer.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[1:])
    )
    one, given = embeddings(micro, 1), prompts(micro, 1, "point")
    micro.decode(one, **given)
    with torch.autocast("cpu", torch.bfloat16):
        micro.decode(one, **given)
    hook.remove()
    for plain, mixed in zip(*seen):
        assert torch.equal(plain, mixed)


def test_official_automatic_masks(micro):
    generator = SamAutomaticMaskGenerator(
        micro.sam, points_per_side=3, pred_iou_thresh=-9, stability_score_thresh=0
    )
    found = generator.generate(photo(48, 64))
    assert found and all(mask["segmentation"].shape == (48, 64) for mask in found)


def test_every_model_type_is_the_official_one():
    counts = {"vit_b": (314, 93_735_472), "vit_l": (482, 312_342_832), "vit_h": (594, 641_090_608)}
    for model_type, (keys, parameters) in counts.items():
        with torch.device("meta"):
            sam = module._build(model_type)
        assert (len(sam.state_dict()), sum(p.numel() for p in sam.parameters())) == (keys, parameters)
    assert 1e6 < sum(p.numel() for p in build_sam_micro().parameters()) < 5e6


def test_vit_b_through_pth_and_safetensors(vit_b, tmp_path):
    torch.save(vit_b.state_dict(), tmp_path / "sam_vit_b.pth")  # the layout of SAM's own files
    loaded = load_sam("vit_b", tmp_path / "sam_vit_b.pth")
    save_sam(tmp_path / "sam.safetensors", loaded, {"model_type": "vit_b"})
    (tmp_path / "sam_vit_b.pth").unlink()
    again = load_sam("vit_b", tmp_path / "sam.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_sam("vit_l", tmp_path / "sam.safetensors")
    (tmp_path / "sam.safetensors").unlink()
    assert "is (1, 64, 64, 768), expected (1, 64, 64, 1024)" in str(
        caught.value
    ) and "load_sam('vit_b', ...)" in str(caught.value)
    for name, weight in vit_b.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight) and torch.equal(
            again.state_dict()[name], weight
        )
    assert (
        not again.training and torch.equal(again.pixel_mean, vit_b.pixel_mean) and again.device.type == "cpu"
    )


def test_sam_and_sum_come_back_as_saved(micro, tmp_path):
    notes = {"model_type": "micro", "seed": 3, "made": {"by": "test", "args": [1, 2]}, "ä": None}
    save_sam(tmp_path / "new" / "sam.safetensors", micro.sam, notes)
    save_sum(tmp_path / "sum.safetensors", micro, notes)
    sam, model = load_sam("micro", tmp_path / "new/sam.safetensors"), load_sum(tmp_path / "sum.safetensors")
    for a, b in ((sam, micro.sam), (model, micro)):
        assert a.state_dict().keys() == b.state_dict().keys()
        assert_same(a.state_dict().values(), b.state_dict().values())
        assert not a.training and [p.requires_grad for p in a.parameters()] == [
            p.requires_grad for p in b.parameters()
        ]
    assert (
        read_metadata(tmp_path / "sum.safetensors")
        == read_metadata(tmp_path / "new/sam.safetensors")
        == notes
    )
    with torch.no_grad():
        pixels = model.preprocess(photo(50, 64))[None]
        assert torch.equal(model.encode(pixels), micro.encode(pixels))
    assert [path.name for path in sorted(tmp_path.rglob("*.*"))] == [
        "sam.safetensors",
        "sum.safetensors",
    ]  # nothing left over


def test_equal_models_are_equal_files(micro, tmp_path):
    notes = {name: name for name in "abcdefgh"} | {"model_type": "micro"}
    save_sum(tmp_path / "1.safetensors", micro, notes)
    save_sum(tmp_path / "2.safetensors", micro, dict(reversed(notes.items())))
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


def test_nothing_is_half_written(micro, tmp_path, monkeypatch):
    path = tmp_path / "sum.safetensors"
    save_sum(path, micro, {"model_type": "micro"})
    before = path.read_bytes()

    def full_disk(tensors, part, metadata):
        part.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_sum(path, micro, {"model_type": "micro"})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_only_what_can_be_loaded_is_saved(micro, tmp_path):
    for metadata, name, words in (
        ({"model_type": "vit_b"}, "a.safetensors", "fit a SAM of model_type 'micro'"),
        ({}, "a.safetensors", "no None"),
        ({"model_type": "micro"}, "a.pth", "end in .safetensors"),
    ):
        with pytest.raises(ValueError, match=words):
            save_sum(tmp_path / name, micro, metadata)
    assert not list(tmp_path.iterdir())


def test_without_a_checkpoint():
    assert not load_sam("micro").training
    for name in ("vit_x", "default"):
        with pytest.raises(
            ValueError, match=f"unknown model_type '{name}'; known are {', '.join(MODEL_TYPES)}"
        ):
            load_sam(name)


def expect_bad(load, path, *words, error=CheckpointError):
    """`load(path)` raises one message that names the file and says `words`."""
    with pytest.raises(error) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in (str(path), *words)), message


def load_micro(path, **kwargs):
    return load_sam("micro", path, **kwargs)


def test_missing_checkpoint(tmp_path):
    for path in (tmp_path / "no.safetensors", tmp_path / "no.pth", tmp_path):
        expect_bad(load_micro, path, "no such checkpoint", "dvc repro data.dvc", error=FileNotFoundError)
    expect_bad(
        lambda path: load_sam("vit_h", path),
        tmp_path / "no.pth",
        "download",
        "sam_vit_h_4b8939.pth",
        error=FileNotFoundError,
    )
    expect_bad(
        load_sum, tmp_path / "no.safetensors", "no such checkpoint", "dvc repro", error=FileNotFoundError
    )


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_checkpoint(micro, tmp_path, suffix, keep):
    path = tmp_path / f"sam{suffix}"
    if suffix == ".pth":
        torch.save(micro.sam.state_dict(), path)
    else:
        save_sam(path, micro.sam, {"model_type": "micro"})
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep == 0.5 else keep])
    expect_bad(load_micro, path, "truncated", "dvc repro data.dvc")
    if suffix == ".safetensors":
        expect_bad(load_sum, path, "truncated", "dvc repro")


@pytest.mark.parametrize(
    "data", [b"<html>404 Not Found</html>", bytes(range(256)) * 9, b"PK\x03\x04 no archive"]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_something_else_as_checkpoint(tmp_path, suffix, data):
    (tmp_path / f"sam{suffix}").write_bytes(data)
    expect_bad(load_micro, tmp_path / f"sam{suffix}", "not a checkpoint")


def test_hash_of_the_checkpoint(micro, tmp_path):
    path = tmp_path / "sum.safetensors"
    save_sum(path, micro, {"model_type": "micro"})
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert_same(load_sum(path, sha256=right.upper()).state_dict().values(), micro.state_dict().values())
    for load in (load_sum, load_micro):
        wrong = partial(load, sha256="0" * 64)
        expect_bad(wrong, path, right, "0" * 64, "correct the hash")


def test_wrong_architecture(micro, tmp_path):
    sam, whole, other = tmp_path / "sam.safetensors", tmp_path / "sum.safetensors", tmp_path / "other.pth"
    save_sam(sam, micro.sam, {"model_type": "micro"})
    save_sum(whole, micro, {"model_type": "micro"})
    torch.save(small_sum().sam.state_dict(), other)
    expect_bad(
        lambda path: load_sam("vit_b", path),
        sam,
        "not a SAM of model_type 'vit_b'",
        "image_encoder.pos_embed is (1, 16, 16, 128), expected (1, 64, 64, 768)",
        "more",
        "fit a SAM of model_type 'micro'",
        "load_sam('micro', ...)",
    )
    expect_bad(
        load_micro, whole, "image_encoder.pos_embed is missing", "SUM of model_type 'micro'", "load_sum"
    )
    expect_bad(
        load_micro,
        other,
        "is (1, 8, 8, 32), expected (1, 16, 16, 128)",
        "fit none of micro, micro_l, micro_b, vit_b, vit_l, vit_h",
    )
    expect_bad(load_sum, sam, "not a SUM of model_type 'micro'", "SAM of model_type 'micro'", "load_sam")
    expect_bad(load_sum, other, "not written by save_sum", "fit none of")


def test_one_wrong_weight_is_named(micro, tmp_path):
    state, path = micro.sam.state_dict(), tmp_path / "sam.pth"
    del state["mask_decoder.iou_token.weight"]
    torch.save(state | {"extra": torch.zeros(1)}, path)
    expect_bad(load_micro, path, "mask_decoder.iou_token.weight is missing; extra is unknown;")
    torch.save({"step": 1, "model": state}, path)
    expect_bad(load_micro, path, "not a dictionary of tensors")
