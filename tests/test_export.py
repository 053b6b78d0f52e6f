"""Models out into the world and back: SAM's own tools, Hugging Face and onnxruntime give our masks."""

import hashlib
import re
import sys
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.utils.transforms import ResizeLongestSide
from torch import nn

from sumlib.methods.hq_sam import HqSum
from sumlib.model.adapters import add_adapters, add_lora, light_parameters, merge_lora
from sumlib.model.checkpoint import CheckpointError, load_sam, load_sum, read_metadata, save_sam
from sumlib.model.export import ExportError, apply_adapter, export_model, import_model, onnx_files, write
from sumlib.model.export.architecture import empty_sam, known_type, shapes_of
from sumlib.model.export.huggingface import sam_config, sam_like, their_names
from sumlib.model.export.low_rank import EXACT
from sumlib.model.light_encoder import is_light, lighten, resize_input
from sumlib.model.micro_sam import build_sam_micro
from sumlib.model.predictor import SumPredictor
from sumlib.model.sum import Sum

TASK = 2
HQ_KEYS = {  # of HQ-SAM's published checkpoints, beside those of SAM
    "mask_decoder.hf_token.weight",
    *(f"mask_decoder.hf_mlp.layers.{k}.{kind}" for k in range(3) for kind in ("weight", "bias")),
    *(
        f"mask_decoder.{part}.{k}.{kind}"
        for part in ("compress_vit_feat", "embedding_encoder", "embedding_maskfeature")
        for k in (0, 1, 3)
        for kind in ("weight", "bias")
    ),
}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lively(model: Sum) -> Sum:
    """Logits of both signs and of some size, and task vectors that matter."""
    with torch.no_grad():
        for mlp in model.sam.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(40)
            nn.init.zeros_(mlp.layers[-1].bias)
        for key, table in model.named_parameters():
            if "task" in key:
                table[1:] += 2 * torch.randn(table[1:].shape, generator=rng(len(key)))
    return model.eval()


@pytest.fixture
def micro() -> Sum:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively(Sum(build_sam_micro(depth=2)))


@pytest.fixture
def base(micro, tmp_path) -> Path:
    """The checkpoint that `micro` starts from."""
    save_sam(tmp_path / "base.safetensors", micro.sam, {"model_type": "micro_b"})
    return tmp_path / "base.safetensors"


@pytest.fixture(scope="module")
def patches() -> Sum:
    """A tiny SAM whose image encoder begins with patches, as SAM's own do: 64 pixels, patches of 8."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        encoder = ImageEncoderViT(
            img_size=64,
            patch_size=8,
            embed_dim=32,
            depth=3,
            num_heads=2,
            mlp_ratio=3.0,
            out_chans=32,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=3,
            global_attn_indexes=(1,),
        )
        for name, parameter in encoder.named_parameters():
            if "pos" in name:
                nn.init.normal_(parameter, std=0.3)
        transformer = TwoWayTransformer(depth=2, embedding_dim=32, num_heads=4, mlp_dim=48)
        decoder = MaskDecoder(transformer_dim=32, transformer=transformer, iou_head_hidden_dim=24)
        sam = Sam(encoder, PromptEncoder(32, (8, 8), (64, 64), 16), decoder)
        return lively(Sum(sam))


@pytest.fixture(scope="module")
def vit_b() -> Sum:
    """ViT-B with random weights, for images of 128 pixels."""
    sam = empty_sam("vit_b", 128).to_empty(device="cpu")
    draw = rng(2)
    with torch.no_grad():
        for value in sam.state_dict().values():
            value.normal_(std=0.02, generator=draw)
        for module in sam.modules():
            if isinstance(module, (nn.LayerNorm, LayerNorm2d)):
                nn.init.ones_(module.weight)
    sam.pixel_mean = torch.tensor([123.675, 116.28, 103.53]).view(-1, 1, 1)
    sam.pixel_std = torch.tensor([58.395, 57.12, 57.375]).view(-1, 1, 1)
    return lively(Sum(sam))


def photo(height: int = 40, width: int = 52) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return noise.repeat(4, 0).repeat(4, 1)


def official(path: Path) -> Sam:
    """What a tool does that knows nothing of SUM: build SAM, read the file."""
    sam = build_sam_micro(depth=2)
    sam.load_state_dict(torch.load(path, weights_only=True))
    return sam.eval()


def stored(file: Path) -> list[str]:
    """Names of the weights in a file."""
    with safe_open(file, "pt") as opened:
        return list(opened.keys())


def same_weights(found: Sum, model: Sum) -> bool:
    theirs = found.state_dict()
    return theirs.keys() == model.state_dict().keys() and all(
        torch.equal(value, theirs[key]) for key, value in model.state_dict().items()
    )


def close(found, expected, off: float = 1e-4) -> bool:
    """Whether arrays differ by at most ``off`` of the largest expected number, or ``off`` if it is small."""
    found, expected = torch.as_tensor(found).detach(), torch.as_tensor(expected).detach()
    return found.shape == expected.shape and bool(
        (found - expected).abs().max() <= off * max(1.0, expected.abs().max())
    )


PROMPTS = {
    "point": {"point_coords": np.array([[20, 11]]), "point_labels": np.array([1])},
    "points": {"point_coords": np.array([[20, 11], [40, 30]]), "point_labels": np.array([1, 0])},
    "box": {"box": np.array([4, 6, 30, 35])},
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_the_official_predictor_has_the_task_in_round_one_and_no_task_later(micro, tmp_path, kind):
    assert export_model(micro, tmp_path / "a.pth", "pth", task=TASK) == [tmp_path / "a.pth"]
    ours, theirs = SumPredictor(micro), SamPredictor(official(tmp_path / "a.pth"))
    for predictor in (ours, theirs):
        predictor.set_image(photo())
    prompt = PROMPTS[kind]
    first = ours.predict(**prompt, task=TASK)
    assert not np.array_equal(ours.predict(**prompt)[0], first[0])  # the task matters
    for mine, other in zip(first[1:], theirs.predict(**prompt)[1:]):
        assert close(other, mine)
    clear = np.abs(ours.predict(**prompt, task=TASK, return_logits=True)[0]) > 1e-4
    assert np.array_equal(theirs.predict(**prompt)[0][clear], first[0][clear]) and clear.mean() > 0.999
    shown = {"mask_input": first[2][:1], "multimask_output": False}
    second = ours.predict(**prompt, **shown)
    assert not np.array_equal(ours.predict(**prompt, **shown, task=TASK)[2], second[2])
    for mine, other in zip(second, theirs.predict(**prompt, **shown)):
        assert np.array_equal(other, mine)  # without the task nothing is added: bit for bit


def test_the_official_generator_gives_the_masks_of_the_task(micro, tmp_path):
    class Told(SamPredictor):
        """SAM's predictor, told the task in the method's own way: added to the image embedding."""

        def set_image(self, *args, **kwargs):
            super().set_image(*args, **kwargs)
            self.features = self.features + micro.task_vectors[TASK].detach()[:, None, None]

    settings = {
        "points_per_side": 4,
        "pred_iou_thresh": -9.0,
        "stability_score_thresh": -9.0,
        "box_nms_thresh": 1.0,
    }
    ours = SamAutomaticMaskGenerator(micro.sam, **settings)
    plain = ours.generate(photo())
    ours.predictor = Told(micro.sam)
    export_model(micro, tmp_path / "a.pth", "pth", task=TASK)
    expected = ours.generate(photo())
    found = SamAutomaticMaskGenerator(official(tmp_path / "a.pth"), **settings).generate(photo())
    assert len(expected) > 20 and len(found) == len(expected)
    order = lambda record: (record["point_coords"], record["predicted_iou"])
    pairs = list(zip(sorted(expected, key=order), sorted(found, key=order)))
    assert all(one["point_coords"] == other["point_coords"] for one, other in pairs)
    differing = sum(int((one["segmentation"] != other["segmentation"]).sum()) for one, other in pairs)
    assert differing <= 2  # of 10^5 pixels one may lie at logit 0, to rounding
    masks = lambda records: {record["segmentation"].tobytes() for record in records}
    assert len(masks(plain) & masks(expected)) < len(expected) // 2


def test_sams_own_registry_reads_a_vit_b(tmp_path):
    model = Sum(load_sam("vit_b"))
    nn.init.normal_(model.task_prompt.weight)
    export_model(model, tmp_path / "b.pth", "pth", task=1, verify=False)
    found, own = (
        sam_model_registry["vit_b"](checkpoint=tmp_path / "b.pth").state_dict(),
        model.sam.state_dict(),
    )
    changed = "prompt_encoder.no_mask_embed.weight"
    assert found.keys() == own.keys()
    assert all(torch.equal(found[key], own[key]) for key in own if key != changed)
    assert torch.equal(found[changed][0], own[changed][0] + model.task_prompt.weight[1])


def test_without_a_task_it_is_the_models_sam_bit_for_bit(micro, tmp_path):
    before = {key: value.clone() for key, value in micro.state_dict().items()}
    micro.train()
    export_model(micro, tmp_path / "a.pth", "pth")
    assert all(
        torch.equal(value, micro.sam.state_dict()[key])
        for key, value in torch.load(tmp_path / "a.pth", weights_only=True).items()
    )
    assert micro.training and all(torch.equal(before[k], v) for k, v in micro.state_dict().items())


def test_our_own_form_has_all_tasks_and_says_what_it_is(micro, tmp_path):
    names = ["unspecified", "leaf", "twig", "bark"]
    file = tmp_path / "a.safetensors"
    export_model(micro, file, "safetensors", task=1, task_names=names, metadata={"project": "leaves"})
    assert same_weights(load_sum(file), micro) and same_weights(import_model(file), micro)
    notes = read_metadata(file)
    assert notes["project"] == "leaves" and notes["tasks"] == names and notes["task"] == 1
    assert notes["model_type"] == "micro_b" and "load_sum" in notes["load"]


def test_a_vit_b_of_a_smaller_side_goes_out_and_comes_back(vit_b, tmp_path):
    assert known_type(shapes_of(vit_b.sam.state_dict())) == ("vit_b", 128)
    with pytest.raises(ExportError, match="images of 128 pixels: use form 'huggingface'"):
        export_model(vit_b, tmp_path / "b.pth", "pth")
    export_model(vit_b, tmp_path / "b.safetensors", "safetensors", verify=False)
    found = import_model(tmp_path / "b.safetensors")
    assert same_weights(found, vit_b) and found.sam.image_encoder.img_size == 128
    folder = tmp_path / "b-hf"
    export_model(vit_b, folder, "huggingface", task=TASK, verify=False)
    check_transformers(vit_b, folder)


def test_a_lighter_and_smaller_encoder_goes_out_as_what_it_computes(patches, tmp_path):
    small = deepcopy(patches)
    resize_input(small.sam, 48)
    lighten(small.sam.image_encoder, checkpointing=True)
    with pytest.raises(ExportError, match="is of no known type"):
        export_model(small, tmp_path / "a.pth", "pth")
    export_model(small, tmp_path / "hf", "huggingface", task=TASK)
    check_transformers(small, tmp_path / "hf")
    found = import_model(tmp_path / "hf")
    assert type(small.sam.image_encoder) is not type(found.sam.image_encoder) and any(
        is_light(small.sam.image_encoder)
    )
    assert found.sam.image_encoder.pos_embed.shape == (1, 6, 6, 32)


def test_a_model_remembers_its_smaller_side(micro, base, tmp_path):
    resize_input(micro.sam, 48)
    shake(micro.decoder_parameters)
    export_model(micro, tmp_path / "a.safetensors", "safetensors", task=1)
    export_model(micro, tmp_path / "b.safetensors", "adapter", base=base, task=1)
    export_model(micro, tmp_path / "c.pth", "pth", task=1)  # SAM's own tools know one side for a type
    for file, start, side in (("a.safetensors", None, 48), ("b.safetensors", base, 48), ("c.pth", None, 64)):
        found = import_model(tmp_path / file, base=start)
        assert found.sam.image_encoder.img_size == side
        assert side == 64 or same_weights(found, micro)
    assert micro.sam.image_encoder.img_size == 48 and same_weights(
        load_sum(tmp_path / "a.safetensors"), micro
    )


def check_transformers(model: Sum, folder: Path) -> None:
    """`transformers` alone, from pixels to masks, against our encoder and decoder."""
    from transformers import SamModel

    side, embed = model.sam.image_encoder.img_size, model.sam.prompt_encoder.mask_input_size
    theirs = SamModel.from_pretrained(folder).eval()
    pixels = torch.randn(1, 3, side, side, generator=rng(3))
    points, labels = torch.tensor([[[0.3, 0.4], [0.7, 0.6]]]) * side, torch.tensor([[1, 0]])
    boxes = torch.tensor([[0.1, 0.2, 0.8, 0.9]]) * side
    with torch.no_grad():
        embedding = model.encode(pixels)
        assert close(theirs.get_image_embeddings(pixels), embedding)
        mask = torch.randn(1, 1, *embed, generator=rng(4))
        for ours, prompt, tasks in (
            (
                {"points": points, "labels": labels},
                {"input_points": points[None], "input_labels": labels[None]},
                TASK,
            ),
            ({"boxes": boxes}, {"input_boxes": boxes[None]}, TASK),
            (
                {"points": points, "labels": labels, "mask_inputs": mask},
                {"input_points": points[None], "input_labels": labels[None], "input_masks": mask},
                None,
            ),
        ):
            told = None if tasks is None else torch.tensor([tasks])
            logits, score = model.decode(embedding, **ours, tasks=told)
            for several, offered in ((True, slice(1, None)), (False, slice(0, 1))):
                out = theirs(pixel_values=pixels, **prompt, multimask_output=several)
                assert close(out.pred_masks[:, 0], logits[:, offered])
                assert close(out.iou_scores[:, 0], score[:, offered])


def test_transformers_gives_our_masks(patches, tmp_path, monkeypatch):
    from transformers import SamProcessor

    folder = tmp_path / "hf"
    files = export_model(
        patches,
        folder,
        "huggingface",
        task=TASK,
        title="Leaves",
        trained="On 50 leaves.",
        licence="cc-by-4.0",
    )
    assert {file.name for file in files} >= {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in files)  # others may read them
    check_transformers(patches, folder)
    inputs = SamProcessor.from_pretrained(folder)(photo(), input_points=[[[26, 20]]], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 64, 64)
    assert inputs["input_points"].flatten().tolist() == [32.0, 20 * 49 / 40]
    assert (inputs["pixel_values"][0] - patches.preprocess(photo())).abs().mean() < 0.1
    card = (folder / "README.md").read_text(encoding="utf-8")
    for word in (
        "# Leaves",
        "On 50 leaves.",
        "license: cc-by-4.0",
        "**entity**",
        "from_pretrained",
        "## Limits",
    ):
        assert word in card
    Image.fromarray(photo()).save(folder / "photo.jpg")
    monkeypatch.chdir(folder)
    said = {}
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], said)  # what the card tells to type
    assert said["masks"].shape == (1, 3, 40, 52) and said["masks"].dtype == torch.bool
    again = said["model"](**said["inputs"], input_masks=said["outputs"].pred_masks[:, 0, :1])
    assert not torch.equal(again.pred_masks, said["outputs"].pred_masks)
    found = import_model(folder)
    assert not found.task_prompt.weight.any()
    folded = found.sam.prompt_encoder.no_mask_embed.weight - patches.sam.prompt_encoder.no_mask_embed.weight
    assert torch.allclose(folded[0], patches.task_vectors[TASK], atol=1e-6)


@pytest.mark.parametrize("model_type", ["vit_b", "vit_l", "vit_h"])
def test_the_config_of_each_size_fits_name_for_name(model_type):
    from transformers import SamModel

    sam = empty_sam(model_type, 1024)
    config = sam_config(sam)
    with torch.device("meta"):
        theirs = shapes_of(SamModel(config).state_dict())
    shapes, names = shapes_of(sam.state_dict()), their_names(sam)
    shared = "prompt_encoder.shared_embedding.positional_embedding"
    assert {names[key]: shape for key, shape in shapes.items()} == {
        k: v for k, v in theirs.items() if k != shared
    }
    assert shapes_of(sam_like(config).state_dict()) == shapes
    heads, layers = {"vit_b": (12, 12), "vit_l": (16, 24), "vit_h": (16, 32)}[model_type]
    assert (config.vision_config.num_attention_heads, config.vision_config.num_hidden_layers) == (
        heads,
        layers,
    )


def test_what_a_sam_config_cannot_say_is_refused(micro, tmp_path):
    with pytest.raises(ExportError, match="begins with several convolutions.*use form 'pth'"):
        export_model(micro, tmp_path / "hf", "huggingface")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form, name", [("pth", "a.pth"), ("huggingface", "hf")])
def test_adapters_and_unmerged_updates_are_refused(micro, tmp_path, form, name):
    add_lora(micro.sam.image_encoder, 2)
    with pytest.raises(ExportError, match="not merged yet"):
        export_model(micro, tmp_path / name, form)
    merge_lora(micro.sam.image_encoder)
    add_adapters(micro.sam.image_encoder, 4)
    with pytest.raises(ExportError, match="adapters.*use form 'safetensors', 'adapter' or 'onnx'"):
        export_model(micro, tmp_path / name, form)
    assert not list(tmp_path.iterdir())


def shake(parameters, size: float = 0.05) -> None:
    """Weights as after a training."""
    with torch.no_grad():
        for k, parameter in enumerate(parameters):
            parameter.add_(size * torch.randn(parameter.shape, generator=rng(k)))


def test_an_adapter_file_of_a_lora_run_has_its_low_rank_factors(micro, base, tmp_path):
    start = {key: value.clone() for key, value in micro.state_dict().items()}
    add_lora(micro.sam.image_encoder, 4, rng())
    shake([*light_parameters(micro.sam.image_encoder), *micro.decoder_parameters])
    merge_lora(micro.sam.image_encoder)
    file = tmp_path / "lora.safetensors"
    export_model(micro, file, "adapter", base=base)
    notes = read_metadata(file)
    projections = {f"sam.image_encoder.blocks.{k}.attn.qkv.weight" for k in range(2)}
    assert notes["ranks"] == dict.fromkeys(projections, 4)
    assert notes["base"]["sha256"] == hashlib.sha256(base.read_bytes()).hexdigest()
    assert {key for key in stored(file) if "image_encoder" in key} == {
        f"{key}.{block}.{part}" for key in projections for block in "qv" for part in ("up", "down")
    }
    for found in (import_model(file, base=base), apply_adapter(load_sam("micro_b", base), file)):
        for key, value in micro.state_dict().items():
            other = found.state_dict()[key]
            if key in projections:
                assert not torch.equal(value, start[key])
                assert (other - value).abs().max() <= EXACT * value.abs().max()
            else:
                assert torch.equal(other, value), key


def test_an_adapter_file_of_a_decoder_run_comes_back_bit_for_bit(micro, base, tmp_path):
    shake(micro.decoder_parameters)
    file = tmp_path / "decoder.safetensors"
    export_model(micro, file, "adapter", base=base)
    assert same_weights(import_model(file, base=base), micro) and not read_metadata(file)["ranks"]
    assert not any("image_encoder" in key for key in stored(file))


def test_an_adapter_file_of_an_adapter_run_has_the_adapters(micro, base, tmp_path):
    add_adapters(micro.sam.image_encoder, 4, rng())
    shake([*light_parameters(micro.sam.image_encoder), *micro.decoder_parameters])
    file = tmp_path / "adapters.safetensors"
    export_model(micro, file, "adapter", base=base)
    kept = [key for key in stored(file) if "image_encoder" in key]
    assert kept and all(".adapter." in key for key in kept)
    found = import_model(file, base=base)
    assert same_weights(found, micro)
    image = torch.randn(1, 3, 64, 64, generator=rng())
    with torch.no_grad():
        assert torch.equal(found.encode(image), micro.encode(image))


def test_changes_of_high_rank_are_stored_whole(micro, base, tmp_path):
    shake(micro.parameters())
    export_model(micro, tmp_path / "full.safetensors", "adapter", base=base)
    assert not read_metadata(tmp_path / "full.safetensors")["ranks"]
    assert same_weights(import_model(tmp_path / "full.safetensors", base=base), micro)


def test_an_adapter_file_knows_its_base(micro, base, tmp_path):
    shake(micro.decoder_parameters)
    file, sha256 = tmp_path / "a.safetensors", hashlib.sha256(base.read_bytes()).hexdigest()
    export_model(micro, file, "adapter", base=base)
    with pytest.raises(ValueError, match=f"give base=, the path of base.safetensors .SHA-256 {sha256}"):
        import_model(file)
    other = tmp_path / "other.pth"
    torch.save(micro.sam.state_dict(), other)
    with pytest.raises(
        CheckpointError, match=f"made for the base base.safetensors .SHA-256 {sha256}.*other.pth"
    ):
        import_model(file, base=other)
    with pytest.raises(CheckpointError, match="made for the base base.safetensors"):
        apply_adapter(micro, file)
    torch.save(load_sam("micro_b", base).state_dict(), other)  # the same weights in another file
    assert same_weights(import_model(file, base=other), micro)
    with pytest.raises(ValueError, match="holds a whole model; base= is for adapter files only"):
        import_model(base, base=base)
    with pytest.raises(CheckpointError, match="not an adapter file"):
        apply_adapter(micro, base)
    with pytest.raises(ValueError, match="needs base="):
        export_model(micro, file, "adapter")
    with pytest.raises(
        ExportError, match="this base is micro for images of 64 pixels, and the model is micro_b"
    ):
        save_sam(tmp_path / "micro.safetensors", load_sam("micro"), {"model_type": "micro"})
        export_model(micro, tmp_path / "b.safetensors", "adapter", base=tmp_path / "micro.safetensors")


def annotate(folder: Path, image: np.ndarray, clicks: list, labels: list, side: int, mask=None) -> list:
    """What an annotation tool does with the two files: scale, encode, decode."""
    encoder, decoder = (onnx_files.session(folder / f"{part}.onnx") for part in ("encoder", "decoder"))
    scale = ResizeLongestSide(side)
    embedding = encoder.run(
        None, {encoder.get_inputs()[0].name: scale.apply_image(image).astype(np.float32)}
    )[0]
    coords = scale.apply_coords(np.array([*clicks, [0, 0]], dtype=np.float32), image.shape[:2])
    grid = 4 * embedding.shape[2]
    return decoder.run(
        None,
        {
            "image_embeddings": embedding,
            "point_coords": coords[None].astype(np.float32),
            "point_labels": np.array([[*labels, -1]], dtype=np.float32),
            "mask_input": np.zeros((1, 1, grid, grid), np.float32) if mask is None else mask,
            "has_mask_input": np.array([float(mask is not None)], dtype=np.float32),
            "orig_im_size": np.array(image.shape[:2], dtype=np.float32),
        },
    )


@pytest.mark.parametrize("single", [True, False])
def test_onnxruntime_gives_our_masks_in_sams_own_interface(micro, tmp_path, single):
    if single:
        resize_input(micro.sam, 48)
        lighten(micro.sam.image_encoder)
        add_adapters(micro.sam.image_encoder, 4, rng())
        shake(light_parameters(micro.sam.image_encoder))
    folder = tmp_path / "onnx"
    files = export_model(micro, folder, "onnx", task=TASK, single_mask=single)
    assert [file.name for file in files] == ["README.md", "decoder.onnx", "encoder.onnx"]
    decoder = onnx_files.session(folder / "decoder.onnx")
    assert [value.name for value in decoder.get_inputs()] == [
        "image_embeddings",
        "point_coords",
        "point_labels",
        "mask_input",
        "has_mask_input",
        "orig_im_size",
    ]
    assert [value.name for value in decoder.get_outputs()] == ["masks", "iou_predictions", "low_res_masks"]
    predictor = SumPredictor(micro)
    for image in (photo(40, 52), photo(88, 60)):
        predictor.set_image(image)
        given = {"point_coords": np.array([[20, 11], [40, 30]]), "point_labels": np.array([1, 0])}
        side = micro.sam.image_encoder.img_size
        outputs = annotate(folder, image, [[20, 11], [40, 30]], [1, 0], side)
        one = predictor.predict(**given, task=TASK, multimask_output=False, return_logits=True)
        for mine, other in zip(one, outputs):
            assert close(other[0, :1], mine[:1])
        if not single:
            three = predictor.predict(**given, task=TASK, return_logits=True)
            assert all(close(other[0, 1:], mine) for mine, other in zip(three, outputs))
        shown = {"mask_input": one[2], "multimask_output": False, "return_logits": True}
        later = annotate(folder, image, [[20, 11], [40, 30]], [1, 0], side, mask=one[2][None])
        assert all(
            close(other[0, :1], mine) for mine, other in zip(predictor.predict(**given, **shown), later)
        )
    for path in (folder, folder / "decoder.onnx"):
        with pytest.raises(CheckpointError, match="ONNX holds a fixed computation.*import the checkpoint"):
            import_model(path)


def test_weights_that_lie_in_many_files_become_one(micro, tmp_path):
    onnx, _ = onnx_files.onnx_or_error()
    file = tmp_path / "encoder.onnx"
    image = torch.randn(64, 64, 3, generator=rng())
    onnx_files._trace(onnx_files.Encoder(micro.sam), {"input_image": image}, ("image_embeddings",), file, {})
    onnx.save_model(onnx.load(file), file, save_as_external_data=True, all_tensors_to_one_file=False)
    assert len(list(tmp_path.iterdir())) > 10
    onnx_files.gather(file)
    assert {path.name for path in tmp_path.iterdir()} == {"encoder.onnx", "encoder.onnx.data"}
    found = onnx_files.run(onnx_files.session(file), {"input_image": image})[0]
    with torch.no_grad():
        assert close(found, onnx_files.Encoder(micro.sam)(image).numpy())


@pytest.fixture
def hq() -> HqSum:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively(HqSum(build_sam_micro(depth=2)))


@torch.no_grad()
def test_hq_sams_checkpoints_go_out_and_come_back(hq, tmp_path):
    file = tmp_path / "hq.pth"
    export_model(hq, file, "pth")
    keys = torch.load(file, weights_only=True).keys()
    assert keys - hq.sam.state_dict().keys() == HQ_KEYS and keys >= hq.sam.state_dict().keys()
    found = import_model(file)
    assert type(found) is HqSum and not found.task_vectors.any()
    embedding = hq.encode(torch.randn(1, 3, 64, 64, generator=rng()))
    click = {"points": torch.tensor([[[20.0, 30.0]]]), "labels": torch.ones(1, 1)}
    assert torch.equal(found.decode(embedding, **click)[0], hq.decode(embedding, **click)[0])
    with pytest.raises(
        ExportError, match="use form 'safetensors'; or leave task out; or give every_round=True"
    ):
        export_model(hq, file, "pth", task=TASK)
    export_model(hq, file, "pth", task=TASK, every_round=True)
    told = hq.decode(embedding, **click, tasks=torch.tensor([TASK]))[0]
    assert torch.allclose(import_model(file).decode(embedding, **click)[0], told, atol=1e-4)
    assert not torch.allclose(told, hq.decode(embedding, **click)[0], atol=1e-2)


def test_hq_sams_architecture_in_the_other_forms(hq, tmp_path):
    for form, name in (("huggingface", "hf"), ("onnx", "onnx")):
        with pytest.raises(ExportError, match="'hq_sam': use form 'safetensors'"):
            export_model(hq, tmp_path / name, form)
    export_model(hq, tmp_path / "a.safetensors", "safetensors", task=TASK)
    save_sam(tmp_path / "base.safetensors", hq.sam, {"model_type": "micro_b"})
    export_model(hq, tmp_path / "b.safetensors", "adapter", base=tmp_path / "base.safetensors")
    again = import_model(tmp_path / "b.safetensors", base=tmp_path / "base.safetensors")
    for found in (load_sum(tmp_path / "a.safetensors"), again):
        assert type(found) is HqSum and same_weights(found, hq)
    assert all(key.startswith(("hq.", "task")) for key in stored(tmp_path / "b.safetensors"))


def test_whole_or_not_at_all(micro, tmp_path, monkeypatch):
    file = tmp_path / "a.pth"
    file.write_bytes(b"before")

    def full(state, path):
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(torch, "save", full)
        export_model(micro, file, "pth")
    assert file.read_bytes() == b"before" and list(tmp_path.iterdir()) == [file]


def test_what_comes_back_changed_is_not_written(micro, tmp_path, monkeypatch):
    true = write.official.official_state
    for key, match in (
        ("image_encoder.blocks.0.norm1.weight", "of the image encoder came back changed"),
        ("mask_decoder.iou_token.weight", "masks came back changed"),
        ("prompt_encoder.mask_downscaling.6.bias", "round 2 came back changed"),
    ):
        monkeypatch.setattr(
            write.official, "official_state", lambda *a, key=key, **k: spoiled(true(*a, **k), key)
        )
        with pytest.raises(ExportError, match=match):
            export_model(micro, tmp_path / "a.pth", "pth", task=1)
        assert not list(tmp_path.iterdir())


def spoiled(state: dict, key: str) -> dict:
    return state | {key: state[key] + 0.5}


def test_folders_of_others_are_left_alone(patches, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for form in ("huggingface", "onnx"):
        with pytest.raises(ExportError, match="holds other files .notes.txt., which.*name a new folder"):
            export_model(patches, tmp_path, form)
        with pytest.raises(ExportError, match="is a file, and form"):
            export_model(patches, tmp_path / "notes.txt", form)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    for _ in range(2):  # an earlier export is replaced
        export_model(patches, tmp_path / "hf", "huggingface", verify=False)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "hf"}


@pytest.mark.parametrize(
    "path, form, given, match",
    [
        (
            "a.pth",
            "torchscript",
            {},
            "no form 'torchscript'; known are adapter, huggingface, onnx, pth, safet",
        ),
        ("a.pth", "pth", {"task": 4}, "no task 4: known are 0 to 3"),
        ("a.pth", "pth", {"title": "x"}, "form 'pth' has no option 'title'; it has every_round"),
        ("a.pth", "pth", {"base": "x"}, "base is for form 'adapter'"),
        ("a.pth", "pth", {"every_round": True}, "every_round is for HQ-SAM"),
        ("a.bin", "pth", {}, "let its name end in .pth or .pt"),
        ("a.pth", "safetensors", {}, "let its name end in .safetensors"),
        ("a.safetensors", "safetensors", {"task_names": ["a"]}, "1 names, and the model has 4 tasks"),
    ],
)
def test_wrong_words_are_named(micro, tmp_path, path, form, given, match):
    with pytest.raises(ValueError, match=match):
        export_model(micro, tmp_path / path, form, **given)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(patches, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        ImportError, match="form 'huggingface' needs transformers: pip install 'transformers>="
    ):
        export_model(patches, tmp_path / "hf", "huggingface")
    with pytest.raises(ImportError, match="form 'onnx' needs onnxruntime: pip install"):
        export_model(patches, tmp_path / "onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_what_is_no_model_is_named(micro, patches, tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.pth: there is no such checkpoint"):
        import_model(tmp_path / "gone.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty: a folder without config.json"):
        import_model(tmp_path / "empty")
    (tmp_path / "broken.pth").write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="broken.pth: truncated, or not a checkpoint"):
        import_model(tmp_path / "broken.pth")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="other.pth: its shapes fit none of micro"):
        import_model(tmp_path / "other.pth")
    state = micro.sam.state_dict()
    torch.save({k: v for k, v in state.items() if "iou_token" not in k}, tmp_path / "less.pth")
    with pytest.raises(CheckpointError, match="less.pth"):
        import_model(tmp_path / "less.pth")
    folder = tmp_path / "hf"
    export_model(patches, folder, "huggingface", verify=False)
    with pytest.raises(CheckpointError, match="under Hugging Face's names; give the folder"):
        import_model(folder / "model.safetensors")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"model_type": "sam",', '"model_type": "bert",'))
    with pytest.raises(CheckpointError, match="holds a 'bert', not a 'sam'"):
        import_model(folder)
    (folder / "config.json").write_text(text)
    (folder / "model.safetensors").write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="hf: cannot be read"):
        import_model(folder)
