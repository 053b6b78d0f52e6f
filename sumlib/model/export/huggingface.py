"""SAM as a folder of Hugging Face's `transformers`, written and read.

`transformers.SamModel` computes what SAM does under other names, which `NAMES` gives, and is built from a
`SamConfig`, which `sam_config` reads off a SAM.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from sumlib.model.checkpoint import CheckpointError
from sumlib.model.export.plain import ExportError, tensors_of
from sumlib.model.export.weights import sum_of_sam
from sumlib.model.sum import Sum

NEEDED = "transformers>=5.0"
FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "processor_config.json", "README.md")
NAMES = [
    (r"^image_encoder\.", "vision_encoder."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"\.blocks\.", ".layers."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.neck\.0\.", ".neck.conv1."),
    (r"\.neck\.1\.", ".neck.layer_norm1."),
    (r"\.neck\.2\.", ".neck.conv2."),
    (r"\.neck\.3\.", ".neck.layer_norm2."),
    (
        r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix",
        "shared_image_embedding.positional_embedding",
    ),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
]
"""Patterns in SAM's names, and what Hugging Face says instead; `their_names` adds the MLPs of heads."""
FIRST, SHARED = (
    "shared_image_embedding.positional_embedding",
    "prompt_encoder.shared_embedding.positional_embedding",
)
"""One table of SAM's under two names: Hugging Face's image and prompt encoder share it."""


def transformers_or_error() -> Any:
    """The package `transformers`, which this form alone needs; ImportError with the remedy if missing."""
    try:
        import transformers
    except ImportError as error:
        reason = str(error).split("\n")[0]
        raise ImportError(
            f"form 'huggingface' needs transformers: pip install '{NEEDED}' ({reason})"
        ) from error
    return transformers


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the progress bars of `transformers`, which are over before they can be read."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def their_names(sam: Sam) -> dict[str, str]:
    """SAM's name -> Hugging Face's, for all weights of a SAM."""
    heads = {
        "mask_decoder.iou_prediction_head.": sam.mask_decoder.iou_prediction_head.num_layers,
        "mask_decoder.output_hypernetworks_mlps.": sam.mask_decoder.output_hypernetworks_mlps[0].num_layers,
    }
    return {key: _their_name(key, heads) for key in sam.state_dict()}


def _their_name(key: str, heads: dict[str, int]) -> str:
    for start, layers in heads.items():
        if key.startswith(start):  # first, inner and last layer of an MLP
            number = int(re.search(r"\.layers\.(\d+)\.", key)[1])
            place = {0: "proj_in", layers - 1: "proj_out"}.get(number, f"layers.{number - 1}")
            return re.sub(r"\.layers\.\d+\.", f".{place}.", key)
    for pattern, theirs in NAMES:
        key = re.sub(pattern, theirs, key)
    return key


def sam_config(sam: Sam) -> Any:
    """The `transformers.SamConfig` of a SAM, read off its modules.

    Raises ExportError for an image encoder that no SamConfig describes: the micro models' begins with small
    convolutions.
    """
    if not isinstance(sam.image_encoder.patch_embed.proj, nn.Conv2d):
        raise ExportError(
            "form 'huggingface' describes an image encoder by a SamConfig, which knows patches only; this "
            "model's begins with several convolutions, as the micro models do: use form 'pth', "
            "'safetensors' or 'onnx'"
        )
    prompt = sam.prompt_encoder
    image = {
        "image_size": sam.image_encoder.img_size,
        "patch_size": sam.image_encoder.patch_embed.proj.kernel_size[0],
    }
    prompts = {
        "hidden_size": prompt.embed_dim,
        "mask_input_channels": prompt.mask_downscaling[3].out_channels,
    }
    return transformers_or_error().SamConfig(
        vision_config=image | _vision_config(sam.image_encoder, prompt.embed_dim),
        prompt_encoder_config=image | prompts,
        mask_decoder_config=_decoder_config(sam.mask_decoder),
    )


def _vision_config(encoder: ImageEncoderViT, channels: int) -> dict:
    block = encoder.blocks[0]
    width, inner = block.norm1.normalized_shape[0], block.mlp.lin1.out_features
    return {
        "hidden_size": width,
        "output_channels": channels,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": block.attn.num_heads,
        "layer_norm_eps": block.norm1.eps,
        "qkv_bias": block.attn.qkv.bias is not None,
        "mlp_ratio": inner / width,
        "mlp_dim": inner,
        "use_abs_pos": encoder.pos_embed is not None,
        "use_rel_pos": block.attn.use_rel_pos,
        "window_size": max(block.window_size for block in encoder.blocks),
        "global_attn_indexes": [k for k, block in enumerate(encoder.blocks) if block.window_size == 0],
        "num_pos_feats": channels // 2,
    }


def _decoder_config(decoder: MaskDecoder) -> dict:
    transformer, head = decoder.transformer, decoder.iou_prediction_head
    layer = transformer.layers[0]
    return {
        "hidden_size": transformer.embedding_dim,
        "mlp_dim": transformer.mlp_dim,
        "num_hidden_layers": transformer.depth,
        "num_attention_heads": transformer.num_heads,
        "attention_downsample_rate": transformer.embedding_dim
        // layer.cross_attn_token_to_image.internal_dim,
        "num_multimask_outputs": decoder.num_multimask_outputs,
        "iou_head_depth": head.num_layers,
        "iou_head_hidden_dim": head.layers[0].out_features,
        "layer_norm_eps": layer.norm1.eps,  # SAM's 1e-5; Hugging Face's default is 1e-6
    }


def sam_like(config: Any) -> Sam:
    """A SAM on the device "meta", of the architecture that a `transformers.SamConfig` describes."""
    vision, prompt, masks = config.vision_config, config.prompt_encoder_config, config.mask_decoder_config
    grid, channels = vision.image_size // vision.patch_size, vision.output_channels
    with torch.device("meta"):
        return Sam(
            ImageEncoderViT(
                img_size=vision.image_size,
                patch_size=vision.patch_size,
                embed_dim=vision.hidden_size,
                depth=vision.num_hidden_layers,
                num_heads=vision.num_attention_heads,
                mlp_ratio=vision.mlp_dim / vision.hidden_size,
                out_chans=channels,
                qkv_bias=vision.qkv_bias,
                norm_layer=partial(nn.LayerNorm, eps=vision.layer_norm_eps),
                use_abs_pos=vision.use_abs_pos,
                use_rel_pos=vision.use_rel_pos,
                window_size=vision.window_size,
                global_attn_indexes=tuple(vision.global_attn_indexes),
            ),
            PromptEncoder(channels, (grid, grid), (vision.image_size,) * 2, prompt.mask_input_channels),
            MaskDecoder(
                transformer_dim=masks.hidden_size,
                transformer=TwoWayTransformer(
                    depth=masks.num_hidden_layers,
                    embedding_dim=masks.hidden_size,
                    num_heads=masks.num_attention_heads,
                    mlp_dim=masks.mlp_dim,
                    attention_downsample_rate=masks.attention_downsample_rate,
                ),
                num_multimask_outputs=masks.num_multimask_outputs,
                iou_head_depth=masks.iou_head_depth,
                iou_head_hidden_dim=masks.iou_head_hidden_dim,
            ),
        )


def write_folder(sam: Sam, folder: Path, card: str) -> None:
    """``config.json``, ``model.safetensors``, the processor's files and the model card ``README.md``.

    Raises: as `sam_config`; ImportError without `transformers`.
    """
    transformers = transformers_or_error()
    names = their_names(sam)
    state = {names[key]: value for key, value in tensors_of(sam.state_dict()).items()}
    with torch.device("meta"):
        model = transformers.SamModel(sam_config(sam))
    model.load_state_dict(state | {SHARED: state[FIRST]}, assign=True)
    model.tie_weights()
    with _quiet(transformers):
        model.save_pretrained(folder)
    side, low = sam.image_encoder.img_size, sam.prompt_encoder.mask_input_size[0]
    processor = transformers.SamImageProcessor(
        size={"longest_edge": side},
        pad_size={"height": side, "width": side},
        mask_size={"longest_edge": low},
        mask_pad_size={"height": low, "width": low},
        image_mean=(sam.pixel_mean.flatten() / 255).tolist(),
        image_std=(sam.pixel_std.flatten() / 255).tolist(),
    )
    transformers.SamProcessor(processor).save_pretrained(folder)
    processor.save_pretrained(folder)  # preprocessor_config.json, which older versions and tools look for
    (folder / "README.md").write_text(card, encoding="utf-8", newline="\n")


def read_folder(folder: Path) -> Sum:
    """A `Sum`, with task vectors of zero, from a folder of a `transformers.SamModel`, of ours or of others.

    Raises: as `open_folder`.
    """
    model, config = open_folder(folder)
    sam, given = sam_like(config), model.state_dict()
    state = {ours: given[theirs] for ours, theirs in their_names(sam).items()}
    return sum_of_sam(sam, state, folder)


def open_folder(folder: Path) -> tuple[Any, Any]:
    """The `transformers.SamModel` in a folder, float32, and its `SamConfig`.

    Raises:
        CheckpointError: it holds another kind of model, or is damaged.
        ImportError: `transformers` is missing.
    """
    transformers = transformers_or_error()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if type(config) is not transformers.SamConfig:
            raise CheckpointError(
                f"{folder}: holds a {config.model_type!r}, not a 'sam'; name another folder"
            )
        with _quiet(transformers):
            model, report = transformers.SamModel.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # readers raise all sorts at damaged files
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{folder}: cannot be read ({reason}); export or download it again") from error
    if missing := sorted(set(report["missing_keys"]) - {FIRST, SHARED}):  # they would be left at random
        raise CheckpointError(f"{folder}: {missing[0]} is missing; export or download it again")
    return model.eval(), config
