"""Smaller micro SAMs, distilled from the micro SAM.

They are the stand-ins for ViT-L and ViT-B; the micro SAM stands for ViT-H.

As in MobileSAM a smaller image encoder first learns to give the larger one's embeddings. It starts from some
of the larger one's blocks, prompt encoder and mask decoder from all of them; then everything is trained on
masks for a while, as at the end of the pre-training. The numbers stand in section `pretrain` of params.yaml.

    python -m sumlib.micro.distill --type micro_b --teacher sample/foundation/sam.safetensors --out
    artifacts/backbones/micro_b     # resumable
"""

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F

from sumlib.config.params import PretrainConfig, load_config
from sumlib.micro.gate import normalise
from sumlib.micro.pretrain import Pretraining, pretrain
from sumlib.model.checkpoint import load_sam, save_sam
from sumlib.model.sum import Sum

BLOCKS = {"micro_l": (0, 1, 4, 5), "micro_b": (0, 5)}
"""The larger encoder's blocks that a smaller one starts from; windowed and global ones in turn."""


class Distillation(Pretraining):
    """Pre-training whose side task is the ``teacher``'s embedding in place of the auxiliary heads."""

    module = "sumlib.micro.distill"

    def __init__(self, config: PretrainConfig, bf16: bool = True, *, teacher: Sam):
        super().__init__(config, bf16)
        self.teacher = Sum(teacher).eval().requires_grad_(False)
        inherit(self.model.sam, teacher, BLOCKS[config.type])

    def side_loss(self, embedding: Tensor, batch: dict, generator: torch.Generator) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            wanted = self.teacher.encode(normalise(self.teacher, batch["images"])).float()
        return 4 * F.mse_loss(embedding, wanted)


def inherit(small: Sam, large: Sam, blocks: tuple[int, ...]) -> None:
    """Copy everything from ``large``, whose encoder has more blocks: block k is its block ``blocks[k]``."""
    names = {
        f"image_encoder.blocks.{source}.": f"image_encoder.blocks.{k}." for k, source in enumerate(blocks)
    }
    state = {}
    for name, value in large.state_dict().items():
        if not name.startswith("image_encoder.blocks."):
            state[name] = value
        for source, place in names.items():
            if name.startswith(source):
                state[place + name.removeprefix(source)] = value
    small.load_state_dict(state)


def write(path: Path, sam: Sam, config: PretrainConfig) -> None:
    """Write a distilled model in half precision: exact enough to start from, half as large in git."""
    save_sam(
        path,
        sam.half(),
        {"model_type": config.type, "made_by": "python -m sumlib.micro.distill", "config": asdict(config)},
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--type", choices=BLOCKS, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    settings = load_config().pretrain[arguments.type]
    trained = pretrain(
        settings, arguments.out, kind=partial(Distillation, teacher=load_sam("micro", arguments.teacher))
    )
    write(arguments.out / "sam.safetensors", trained.sam, settings)
