"""Who makes pseudo-labels and maps: a foundation model, or a fine-tuned one (self-training).

They are the entries of section `labellers` of `params.yaml`."""

from pathlib import Path

from sumlib.config.params import Config
from sumlib.model.checkpoint import load_sam, load_sum
from sumlib.model.sum import Sum


def load_foundation(config: Config, backbone: str = "vit_h") -> Sum:
    """The foundation model with that backbone ("vit_h", "vit_l", "vit_b"), its task prompt at zero."""
    chosen = config.with_backbone(backbone)
    return Sum(load_sam(chosen.model.type, chosen.checkpoint, sha256=chosen.model.sha256)).eval()


def labeller_file(config: Config, name: str, artifacts: Path) -> Path:
    """Checkpoint of a labeller: of its run below ``artifacts``, or of its foundation model.

    Raises ConfigError, with the nearest names, for an unknown name.
    """
    labeller = config.labeller(name)
    if labeller.run:
        return artifacts / "finetune" / f"{labeller.run}.safetensors"
    return config.with_backbone(labeller.backbone).checkpoint


def load_labeller(config: Config, name: str, artifacts: Path) -> Sum:
    """The model in `labeller_file`, which is never given a task."""
    labeller = config.labeller(name)
    if labeller.run:
        return load_sum(labeller_file(config, name, artifacts)).eval()
    return load_foundation(config, labeller.backbone)
