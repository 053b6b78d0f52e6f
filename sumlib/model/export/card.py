"""The README.md of an exported folder: a model card."""

from dataclasses import dataclass

LIMITS = (
    "Like SAM it cuts out what it is pointed at and names nothing. It was tuned on the data above; on other "
    "kinds of images compare it with SAM before you rely on it. Its predicted IoU is an estimate."
)


@dataclass(frozen=True)
class Card:
    """What a model card says beyond what the model itself tells."""

    title: str = "A fine-tuned Segment Anything Model"
    trained: str = "Fine-tuned from SAM by uncertainty-aware fine-tuning (SUM, NeurIPS 2024)."
    """How and on what it was trained, in Markdown."""
    licence: str = "apache-2.0"
    """Hugging Face's word for the licence. SAM's weights are under Apache 2.0; your data may ask for more."""
    limits: str = LIMITS
    """What it cannot do, in Markdown."""


def first_round(task: str | None) -> str:
    """What the file does with the task, in a sentence or two."""
    if task is None:
        return "It has no task: all rounds are a plain SAM's."
    return (
        f"It segments **{task}**: the task is built into the first round, when there is no mask prompt. "
        "Later rounds, which are given the mask before, have no task, as in training."
    )


def huggingface_card(card: Card, task: str | None, model_type: str, side: int) -> str:
    """``README.md`` of a `transformers` folder.

    ``task`` is the task's name, ``model_type`` such as "vit_b", ``side`` the input side in pixels.
    """
    return HUGGING_FACE.format(
        **vars(card) | {"task": first_round(task), "model_type": model_type, "side": side}
    )


def onnx_card(
    card: Card, task: str | None, model_type: str, sides: tuple[int, int], single_mask: bool
) -> str:
    """``README.md`` of a folder with ``encoder.onnx`` and ``decoder.onnx``.

    ``sides``: of the input and of the mask logits, in pixels; else as `huggingface_card`.
    """
    facts = {
        "task": first_round(task),
        "model_type": model_type,
        "side": sides[0],
        "low": sides[1],
        "masks": 1 if single_mask else 4,
        "name": card.title.lower().replace(" ", "-"),
    }
    return ONNX.format(**vars(card) | facts)


HUGGING_FACE = """\
---
license: {licence}
library_name: transformers
pipeline_tag: mask-generation
tags: [segment-anything, sam, sum, image-segmentation]
---

# {title}

A Segment Anything Model ({model_type}, images of {side} pixels), made with SUM, uncertainty-aware
fine-tuning of segmentation foundation models. {task}

## Use

```python
import torch
from PIL import Image
from transformers import SamModel, SamProcessor

folder = "."  # of this file, or its name on the Hub
model, processor = SamModel.from_pretrained(folder), SamProcessor.from_pretrained(folder)
image = Image.open("photo.jpg").convert("RGB")
inputs = processor(image, input_points=[[[450, 600]]], return_tensors="pt")  # x, y in pixels
with torch.no_grad():
    outputs = model(**inputs)
masks = processor.post_process_masks(
    outputs.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
)[0]  # (1, 3, H, W) bool; outputs.iou_scores says which of the three is best
```

To go on from a mask, give its logits, `outputs.pred_masks[:, 0, :1]`, as `input_masks`.

## Training

{trained}

## Limits

{limits}

`transformers` scales images with another filter than SAM's own predictor, so that outlines can differ by a
pixel between the two.

## Licence

{licence}. SAM's weights, which this model starts from, are under the Apache License 2.0. The method:
K. Liu et al., *Uncertainty-aware Fine-tuning of Segmentation Foundation Models*, NeurIPS 2024.
"""

ONNX = """\
# {title}

A Segment Anything Model ({model_type}) as ONNX, in the interface of SAM's own export and of annotation tools.
{task}

- `encoder.onnx`, once an image. `input_image` (h, w, 3) float32: RGB 0 to 255, scaled so that the longer
  side is {side} pixels. Gives `image_embeddings`.
- `decoder.onnx`, once a prompt. `image_embeddings`; `point_coords` (1, N, 2) float32, x, y in pixels of the
  scaled image; `point_labels` (1, N) float32: 1 object, 0 background, 2 and 3 corners of a box, -1 padding
  (add one at 0, 0 where there is no box); `mask_input` (1, 1, {low}, {low}) logits of the round before, and
  `has_mask_input` (1,) 1 or 0; `orig_im_size` (2,) height and width of the image, all float32. Gives `masks`
  (1, {masks}, height, width) logits, inside where above 0; `iou_predictions`; `low_res_masks`, the next
  round's `mask_input`.

In AnyLabeling and X-AnyLabeling, load a `config.yaml` beside these files:

```yaml
type: segment_anything
name: {name}
display_name: {title}
encoder_model_path: encoder.onnx
decoder_model_path: decoder.onnx
```

## Training

{trained}

## Limits

{limits}

## Licence

{licence}. SAM's weights, which this model starts from, are under the Apache License 2.0.
"""
