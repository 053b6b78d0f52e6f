"""Masks: against segment_anything, pycocotools, OpenCV and hand-computed cases."""

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from segment_anything.utils.transforms import ResizeLongestSide

from sumlib.base import masks


@pytest.fixture
def random_masks() -> torch.Tensor:
    """(6, 37, 52) bool, coherent blobs that touch the border."""
    noise = np.random.default_rng(0).normal(size=(6, 37, 52)).astype(np.float32)
    return torch.from_numpy(np.stack([cv2.GaussianBlur(one, (0, 0), 2) > 0 for one in noise]))


def test_mask_box_is_inclusive_xyxy():
    mask = torch.zeros(3, 8, 9, dtype=torch.bool)
    mask[0, 2:5, 3:8] = True
    mask[1, 7, 0] = True
    assert masks.mask_box(mask).tolist() == [[3, 2, 7, 4], [0, 7, 0, 7], [0, 0, 0, 0]]
    assert masks.mask_box(mask).dtype == torch.float32
    assert masks.mask_box(mask[:0]).shape == (0, 4)


def test_rle_round_trip(random_masks):
    for mask in random_masks.numpy():
        rle = masks.rle_encode(mask)
        assert rle["size"] == [37, 52] and isinstance(rle["counts"], str)
        assert coco.area({**rle, "counts": rle["counts"].encode()}) == mask.sum()
        decoded = masks.rle_decode(rle)
        assert decoded.dtype == bool and (decoded == mask).all()


@pytest.mark.parametrize("value", [False, True])
def test_rle_of_constant_masks(value):
    mask = np.full((5, 7), value)
    assert (masks.rle_decode(masks.rle_encode(mask)) == mask).all()


def test_rle_uncompressed_runs_down_the_columns():
    assert masks.rle_decode({"size": [2, 3], "counts": [1, 2, 3]}).astype(int).tolist() == [
        [0, 1, 0],
        [1, 0, 0],
    ]


@pytest.mark.parametrize(
    "counts",
    [[1, 2], "0121", [0.5, 3.5], [5, -1], [True, 3], [2**63], [], "", "012", "z~", "\u00e9", None, 4, ["4"]],
)
def test_rle_of_another_size_or_broken_is_refused(counts):
    with pytest.raises(ValueError, match="run lengths"):
        masks.rle_decode({"size": [2, 2], "counts": counts})


@pytest.mark.parametrize(
    "size", [[10**6, 10**6], [0, 4], [-2, -2], [2.0, 2.0], [True, 4], [4], "22", None, [2**63, 1]]
)
def test_rle_of_no_image_is_refused_before_pycocotools_dies_of_it(size):
    with pytest.raises(ValueError, match="size of its run lengths"):
        masks.rle_decode({"size": size, "counts": [4]})
    with pytest.raises(ValueError, match="size of its run lengths"):
        masks.rle_decode({"size": size, "counts": "04"})


@pytest.mark.parametrize(
    "value", [np.nan, np.inf, -np.inf, 1e9, 2**31, -(2**31), 2**63, 10**400, True, None, "1", [1]]
)
def test_polygons_that_would_kill_pycocotools_are_refused(value):
    with pytest.raises(ValueError, match="no number near the image of 6 x 8"):
        masks.polygon_mask([[2, 1, 5, 1, 5, 4, value, 4]], 6, 8)


@pytest.mark.parametrize("polygon", [{"size": [6, 8], "counts": [48]}, "212141", [2, 1, 5, 1, 5, 4, 2], 7])
def test_what_is_no_polygon_is_refused(polygon):
    with pytest.raises(ValueError, match="no list of x, y"):
        masks.polygon_mask([polygon], 6, 8)


def test_polygons_may_reach_somewhat_outside_the_image():
    assert masks.polygon_mask([[-8, -8, 16, -8, 16, 16, -8, 16]], 6, 8).all()


@pytest.mark.parametrize("size", [(64, 64), (48, 64), (1023, 333), (20, 1000)])
def test_resize_and_pad_like_sam(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    resized = masks.resize_longest_side(image, 64)
    assert resized.shape[:2] == masks.longest_side_size(*size, 64) and max(resized.shape) == 64
    assert (resized == ResizeLongestSide(64).apply_image(image)).all()
    padded = masks.pad_to_square(torch.from_numpy(resized).permute(2, 0, 1), 64)  # (3, 64, 64)
    height, width = resized.shape[:2]
    assert (
        padded.shape == (3, 64, 64) and (padded[:, :height, :width].permute(1, 2, 0).numpy() == resized).all()
    )
    assert not padded[:, height:].any() and not padded[:, :, width:].any()


def test_pad_refuses_what_is_too_large():
    with pytest.raises(ValueError, match="resize it first"):
        masks.pad_to_square(torch.zeros(1, 65, 3), 64)


def test_connected_components_against_opencv(random_masks):
    for mask in random_masks.numpy():
        for connectivity in (4, 8):
            labels, areas = masks.connected_components(mask, connectivity)
            count, reference = cv2.connectedComponents(mask.astype(np.uint8), connectivity=connectivity)
            assert len(areas) == count - 1 and areas.tolist() == [
                (labels == k + 1).sum() for k in range(count - 1)
            ]
            assert len(np.unique(labels * count + reference)) == count  # the same partition
            first = [(labels == k + 1).ravel().argmax() for k in range(count - 1)]
            assert first == sorted(first)


def test_connected_components_of_constant_masks():
    assert masks.connected_components(np.zeros((2, 2), bool))[1].tolist() == []
    labels, areas = masks.connected_components(np.ones((2, 2), bool))
    assert labels.tolist() == [[1, 1], [1, 1]] and areas.tolist() == [4]
    with pytest.raises(ValueError, match="4 or 8"):
        masks.connected_components(np.ones((2, 2), bool), 6)


@pytest.mark.parametrize("width", [0, 1, 2, 5])
def test_erosion_and_dilation_against_opencv(random_masks, width):
    kernel = np.ones((3, 3), np.uint8)
    outside = {"iterations": width, "borderType": cv2.BORDER_CONSTANT, "borderValue": 0}
    for i, mask in enumerate(random_masks.numpy().astype(np.uint8)):
        eroded = cv2.erode(mask, kernel, **outside) if width else mask
        dilated = cv2.dilate(mask, kernel, **outside) if width else mask
        assert (masks.erode(random_masks, width)[i].numpy() == eroded).all()
        assert (masks.dilate(random_masks, width)[i].numpy() == dilated).all()
        assert (masks.inner_boundary(random_masks, width)[i].numpy() == mask - eroded).all()
        assert (masks.boundary_band(random_masks, width)[i].numpy() == dilated - eroded).all()


def test_boundary_width():
    assert [masks.boundary_width(side, side) for side in (8, 64, 256, 1024)] == [1, 2, 7, 29]
    assert masks.boundary_width(300, 400, 0.01) == 5


def test_only_bool_batches_of_one_shape():
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="bool"):
        masks.mask_box(mask.float())
    with pytest.raises(ValueError, match="shape"):
        masks.mask_box(mask[0])
    with pytest.raises(ValueError, match="second .* first .* differ in shape"):
        masks.require_masks(first=mask, second=mask[:1])
