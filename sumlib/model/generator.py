"""SAM's automatic mask generator with the task prompt, for every architecture."""

from copy import deepcopy

import numpy as np
import torch
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam
from segment_anything.utils.amg import MaskData
from torch import nn

from sumlib.model.predictor import SumPredictor, require_image
from sumlib.model.sum import Sum


class SumMaskGenerator(SamAutomaticMaskGenerator):
    """SAM's automatic mask generator on a `Sum`: the same arguments, the same records, and a task.

    Without a task the records of a model in SAM's architecture are SAM's, bit for bit; with one they are
    those of a plain SAM whose no-mask embedding has the task's vector added, bit for bit as well. HQ-SAM's
    architecture works, too.

    Many small objects: ``crop_n_layers=1`` looks at 2 x 2 overlapping tiles besides the whole image, 2 at 4 x
    4 more, each enlarged to the model's input. Masks that end at a tile's edge are left to the whole image,
    and duplicates are removed. ``points_per_batch`` changes memory, and results by rounding only.

    Args:
        model: in evaluation mode, on the device to compute on.
        task: id of the task for every point; None for none.
        arguments, named: those of `SamAutomaticMaskGenerator` behind the model, in its order and with its
            defaults: points_per_side 32, points_per_batch 64, pred_iou_thresh 0.88, stability_score_thresh
            0.95, stability_score_offset 1.0, box_nms_thresh 0.7, crop_n_layers 0, crop_nms_thresh 0.7,
            crop_overlap_ratio 512 / 1500, crop_n_points_downscale_factor 1, point_grids None,
            min_mask_region_area 0, output_mode "binary_mask" ("uncompressed_rle", "coco_rle").

    Raises:
        ValueError: no such task, or a model of another architecture than SAM's in training mode.
    """

    def __init__(self, model: Sum, *arguments, task: int | None = None, **named):
        predictor = SumPredictor(model, task=task)  # checks the task
        super().__init__(sam_with_task(model, task), *arguments, **named)
        if model.architecture:
            self.predictor = predictor

    def generate(self, image: np.ndarray) -> list[dict]:
        """Records of the masks of an image (H, W, 3) uint8 RGB, as `SamAutomaticMaskGenerator.generate`.

        "segmentation" (H, W) bool or a run-length code, "area" in pixels, "bbox" XYWH, "predicted_iou",
        "stability_score", "point_coords" [[x, y]] and "crop_box" XYWH. No mask gives an empty list.

        Raises:
            ValueError: another shape or type.
        """
        return super().generate(require_image(image))

    def _process_crop(self, *args) -> MaskData:
        data = super()._process_crop(*args)
        if not len(data["rles"]):  # SAM's generator stumbles over the lost shape if no crop has a mask
            data["crop_boxes"] = torch.zeros(0, 4, dtype=torch.int64)
        return data


def sam_with_task(model: Sum, task: int | None) -> Sam:
    """The model's SAM with the task's vector in its no-mask embedding: a prompt without mask gets the task.

    Encoder and mask decoder are shared, the prompt encoder is a copy. ``model.sam`` itself where there is no
    task, and in other architectures than SAM's, whose task is elsewhere.
    """
    if task is None or model.architecture:
        return model.sam
    prompt = deepcopy(model.sam.prompt_encoder)
    nothing = prompt.no_mask_embed
    nothing.weight = nn.Parameter(nothing.weight.detach() + model.task_prompt.weight[task].detach())
    sam = Sam(model.sam.image_encoder, prompt, model.sam.mask_decoder)
    sam.pixel_mean, sam.pixel_std = model.sam.pixel_mean, model.sam.pixel_std
    return sam
