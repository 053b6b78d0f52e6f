"""Who makes pseudo-labels and their maps: SAM, a SAM with another backbone, or a SUM that was fine-tuned before (self-training)."""

from pathlib import Path

from sumlib.config import LABELLERS, Config
from sumlib.model import Sum, load_sam, load_sum

SELF = "sum-medium"
"""Run whose model is the labeller "sum"."""


def load_foundation(config: Config, backbone: str = "vit_h") -> Sum:
    """The foundation model with that backbone ("vit_h", "vit_l", "vit_b"), in evaluation mode, its task prompt at zero."""
    chosen = config.with_backbone(backbone)
    return Sum(load_sam(chosen.model.type, chosen.checkpoint, sha256=chosen.model.sha256)).eval()


def load_labeller(config: Config, name: str, artifacts: Path) -> Sum:
    """The model of one of `LABELLERS`, which is never given a task; ``artifacts`` is where fine-tuned models lie.

    Raises ValueError for an unknown name. Under the profile smoke "sum" is SAM, which is SUM before its training.
    """
    if name not in LABELLERS:
        raise ValueError(f"no labeller {name!r}; known are {', '.join(LABELLERS)}")
    if name != "sum" or config.profile == "smoke":
        return load_foundation(config, name)
    return load_sum(artifacts / "finetune" / f"{SELF}.safetensors").eval()
