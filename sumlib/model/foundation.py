"""Who makes pseudo-labels and maps: SAM, SAM with another backbone, or a fine-tuned SUM (self-training)."""

from pathlib import Path

from sumlib.config.params import Config
from sumlib.config.runs import LABELLERS, nearest
from sumlib.model.checkpoint import load_sam, load_sum
from sumlib.model.sum import Sum

SELF = "sum-medium"
"""Run whose model is the labeller "sum"."""


def load_foundation(config: Config, backbone: str = "vit_h") -> Sum:
    """The foundation model with that backbone ("vit_h", "vit_l", "vit_b"), its task prompt at zero."""
    chosen = config.with_backbone(backbone)
    return Sum(load_sam(chosen.model.type, chosen.checkpoint, sha256=chosen.model.sha256)).eval()


def labeller_file(config: Config, name: str, artifacts: Path) -> Path:
    """Checkpoint of one of `LABELLERS`; ``artifacts`` is where fine-tuned models lie.

    In profile `smoke`, where no SUM has been trained, "sum" is SAM. Raises
    ValueError, with the nearest names, for an unknown name.
    """
    if name not in LABELLERS:
        raise ValueError(f"no labeller {name!r}; the nearest are: {nearest(name, list(LABELLERS))}")
    return (
        artifacts / "finetune" / f"{SELF}.safetensors"
        if _tuned(config, name)
        else config.with_backbone(name).checkpoint
    )


def load_labeller(config: Config, name: str, artifacts: Path) -> Sum:
    """The model in `labeller_file`, which is never given a task."""
    path = labeller_file(config, name, artifacts)
    return load_sum(path).eval() if _tuned(config, name) else load_foundation(config, name)


def _tuned(config: Config, name: str) -> bool:
    return name == "sum" and config.profile != "smoke"
