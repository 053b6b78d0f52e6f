"""What a profile needs before anything is computed: its checkpoints and data sets, and a world that is not
the wrong one."""

from pathlib import Path

from sumlib.base.paths import ROOT
from sumlib.config.params import Config, DatasetConfig, ModelConfig
from sumlib.config.schema import ConfigError

MICRO_PROFILES = ("smoke", "micro")
"""The profiles whose data is the micro world."""
MICRO_SIGNS = ("SA-1B-truth", "foundation/log.jsonl", "backbones/micro_l.safetensors")
"""Files and folders of the micro world that no real data set has."""
SAM_FILES = "https://dl.fbaipublicfiles.com/segment_anything"
ADDRESSES = {
    "vit_h": f"{SAM_FILES}/sam_vit_h_4b8939.pth",
    "vit_l": f"{SAM_FILES}/sam_vit_l_0b3195.pth",
    "vit_b": f"{SAM_FILES}/sam_vit_b_01ec64.pth",
    "HQSeg-44K": "https://github.com/SysCV/sam-hq",
    "EntitySeg": "https://github.com/adobe-research/EntitySeg-Dataset",
    "SA-1B": "https://ai.meta.com/datasets/segment-anything-downloads/",
    "COIFT": "https://github.com/liewjunhao/thin-object-selection",
    "DIS-VD": "https://github.com/xuebinqin/DIS",
    "HRSOD": "https://github.com/yi94code/HRSOD",
    "ThinObject5K": "https://github.com/liewjunhao/thin-object-selection",
    "BIG": "https://github.com/hkchengrex/CascadePSP",
    "VOCEVAL": "https://github.com/hkchengrex/CascadePSP",
    "EntitySeg-0": "https://github.com/adobe-research/EntitySeg-Dataset",
    "EntitySeg-1": "https://github.com/adobe-research/EntitySeg-Dataset",
    "EntitySeg-2": "https://github.com/adobe-research/EntitySeg-Dataset",
    "Bodypart": "https://github.com/ZhaoJ9014/Multi-Human-Parsing",
    "EasyPortrait": "https://github.com/hukenovs/easyportrait",
    "Fashionpedia": "https://github.com/cvdfoundation/fashionpedia",
    "Fashionpedia-subpart": "https://github.com/cvdfoundation/fashionpedia",
    "PACO": "https://github.com/facebookresearch/paco",
    "Cityscapes": "https://www.cityscapes-dataset.com",
    "EgoHOS": "https://github.com/owenzlz/EgoHOS",
    "GTAV": "https://download.visinf.tu-darmstadt.de/data/from_games/",
    "TrashCan": "https://conservancy.umn.edu/handle/11299/214865",
}
"""Where checkpoints (by architecture) and data sets (by name) are to be had."""
OWN = "not public; your own images in that layout (docs/datasets.md)"
"""What is said of data sets without an address."""
ROLES = {
    "foundation": ("dev",),
    "refine": ("human", "dev"),
    "pseudo_label": ("unlabeled",),
    "uncertainty": ("unlabeled",),
    "finetune": ("human", "unlabeled"),
    "evaluate": ("test",),
    "quality": ("unlabeled",),
    "refinement": ("test",),
    "variants": ("human", "unlabeled", "test"),
    "additional": ("additional",),
    "tour": ("dev",),
    "explore": (),
    "tables": (),
    "claims": (),
    "human_study": ("unlabeled",),
}
"""What data a notebook reads, beside models; none: it reads results alone. One that is not named here is
taken to read all but the additional sets."""
ALL = ("human", "unlabeled", "dev", "test")


def check_inputs(config: Config, notebook: str = "") -> None:
    """Raise ConfigError if the profile lacks anything that the notebook reads ("": any but `additional`).

    The one message lists all that is missing, where to get it and where to put it. A profile that is none of
    `MICRO_PROFILES` is refused on the micro world, too.
    """
    micro = config.profile in MICRO_PROFILES
    if not micro and is_micro_world(config.data_root):
        raise ConfigError(
            f"profile {config.profile} would run on the micro world in {_place(config.data_root)}; put real "
            "data elsewhere (datasets/ or an absolute path) and name that folder under `data` in params.yaml"
        )
    roles = ROLES.get(notebook, ALL)
    models = _models(config) if roles else {}
    missing = [line for name, model in models.items() for line in _missing_model(name, model)]
    for name, dataset in _datasets(config, roles).items():
        if not any((config.data_root / folder).is_dir() for folder in dataset.folders):
            place = _place(config.data_root / dataset.folders[0])
            missing.append(f"data set {name}: {ADDRESSES.get(name, OWN)} -> {place}/")
    if missing:
        remedy = "run `dvc repro data.dvc`, which brings all of it:" if micro else "get and put there:"
        lines = "\n  ".join(missing)
        raise ConfigError(f"profile {config.profile} lacks {len(missing)} of its inputs; {remedy}\n  {lines}")


def is_micro_world(root: Path) -> bool:
    """Whether a folder of data sets is the micro world, or a copy of it, by what lies in it."""
    return any((root / sign).exists() for sign in MICRO_SIGNS)


def _models(config: Config) -> dict[str, ModelConfig]:
    """The foundation models that the profile's runs start from, or that make pseudo-labels."""
    starts = [*config.runs.values(), *config.labellers.values()]
    used = {"vit_h"} | {start.backbone for start in starts}
    return {name: config.with_backbone(name).model for name in ("vit_h", "vit_l", "vit_b") if name in used}


def _missing_model(name: str, model: ModelConfig) -> list[str]:
    path = ROOT / model.checkpoint
    return (
        []
        if path.is_file()
        else [f"checkpoint {model.type}: {ADDRESSES.get(model.type, OWN)} -> {_place(path)}"]
    )


def _datasets(config: Config, roles: tuple[str, ...]) -> dict[str, DatasetConfig]:
    """The data sets that the roles stand for, in the order of params.yaml."""
    names = {name for name, dataset in config.datasets.items() if dataset.role in roles}
    if "human" in roles:
        names |= {name for group in config.data.human.values() for name in group}
    if "unlabeled" in roles:
        names.add(config.data.unlabeled)
    return {name: dataset for name, dataset in config.datasets.items() if name in names}


def _place(path: Path) -> str:
    """`path` relative to the repository where it lies inside."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
