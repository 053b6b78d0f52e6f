"""SAM at micro scale: for images of 64 x 64, with encoders of three depths."""

from functools import partial

from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

MICRO_DEPTHS = {"micro": 6, "micro_l": 4, "micro_b": 2}
"""Blocks of the image encoder of the micro models, which stand for ViT-H, ViT-L and ViT-B."""


class ConvStem(nn.Module):
    """Patch embedding with a hierarchy of small convolutions: (B, 3, S, S) -> (B, S/4, S/4, C).

    A ViT of a million parameters, trained for minutes, learns edges far faster this way than from one 4 x 4
    convolution.
    """

    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(3, width // 4, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width // 4, width // 2, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


def build_sam_micro(
    size: int = 64, patch: int = 4, width: int = 128, depth: int = 6, heads: int = 4, channels: int = 128
) -> Sam:
    """A SAM of 1.94 M parameters (with ``depth`` 6) for images of ``size`` x ``size`` pixels.

    Its embedding is (channels, size / patch, size / patch) and its mask logits are (size, size) for ``patch``
    4, so that strokes one pixel wide can be told apart.
    """
    grid = size // patch
    encoder = ImageEncoderViT(
        img_size=size,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=3.0,
        out_chans=channels,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_abs_pos=True,
        use_rel_pos=True,
        window_size=8,
        global_attn_indexes=tuple(range(1, depth, 2)),
    )
    encoder.patch_embed = ConvStem(width)
    return Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=channels,
            image_embedding_size=(grid, grid),
            input_image_size=(size, size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=channels, mlp_dim=2 * channels, num_heads=4),
            transformer_dim=channels,
            iou_head_depth=3,
            iou_head_hidden_dim=channels,
        ),
    )
