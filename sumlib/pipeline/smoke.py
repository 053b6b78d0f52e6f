"""What the profile `smoke` makes on the spot where other profiles read the outputs of earlier stages."""

from pathlib import Path

import torch
from torch import Tensor

from sumlib.config.params import Config
from sumlib.data.registry import open_dataset
from sumlib.model.foundation import load_foundation
from sumlib.pseudo.store import add_uncertainty, generate


def pseudo_labels(config: Config, folder: Path) -> Path:
    """Pseudo-labels with certainty of the first unlabeled images, written into ``folder``; the Parquet file.

    The masks are refined by SAM's own decoder, which is the refinement module before its training.
    """
    model = load_foundation(config)
    images = open_dataset(config.data.unlabeled, config.data_root)

    @torch.no_grad()
    def refine(embeddings: Tensor, logits: Tensor, boxes: Tensor, points: Tensor) -> Tensor:
        labels = torch.ones(len(points), 1, dtype=torch.long)
        return model.decode(
            embeddings, points=points[:, None], labels=labels, boxes=boxes, mask_inputs=logits[:, None]
        )[0][:, 0]

    masks, output = folder / "masks.parquet", folder / "smoke.parquet"
    generate(model, images, config.pseudo_label, masks, progress=False)
    add_uncertainty(masks, output, model, refine, images, progress=False)
    return output
