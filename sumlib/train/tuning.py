"""Which parameters are trained, and how fast."""

import torch
from torch import nn

from sumlib.config.params import FinetuneConfig
from sumlib.model.adapters import add_adapters, add_lora, light_parameters, merge_lora
from sumlib.model.sum import Sum


def prepare(model: Sum, tuning: str, config: FinetuneConfig, generator: torch.Generator) -> None:
    """Add the modules of a lightweight scheme to the image encoder; "full" and "decoder" need none."""
    if tuning == "adapter":
        add_adapters(model.sam.image_encoder, config.adapter_width, generator)
    elif tuning == "lora":
        add_lora(model.sam.image_encoder, config.lora_rank, generator)


def finish(model: Sum) -> None:
    """After the training: low-rank updates become part of the weights, adapters stay."""
    merge_lora(model.sam.image_encoder)


def parameter_groups(
    model: Sum, config: FinetuneConfig, task_prompt: bool, tuning: str = "full"
) -> list[dict]:
    """AdamW's groups (docs/method.md section 5). Full fine-tuning trains all, the encoder with layer decay.

    A parameter of encoder layer k of L (0 the patch embedding, L - 1 the neck) learns at ``lr *
    encoder_lr_scale * layer_decay ** (L - 1 - k)``, the prompt encoder and the mask decoder at ``lr``, the
    task prompt at ``task_prompt_lr`` (only if ``task_prompt``). With any other ``tuning`` the image encoder
    is frozen but for what `prepare` has added to it, which learns at ``light_lr``. Biases, norms and
    embeddings are not decayed. Parameters left out are frozen.
    """
    encoder = model.sam.image_encoder
    stem = [encoder.patch_embed.parameters(), [encoder.pos_embed] if encoder.pos_embed is not None else []]
    layers = [
        [p for part in stem for p in part],
        *(list(b.parameters()) for b in encoder.blocks),
        list(encoder.neck.parameters()),
    ]
    speeds = [
        config.encoder_lr_scale * config.layer_decay ** (len(layers) - 1 - k) for k in range(len(layers))
    ]
    body = (
        [(params, config.lr * speed) for params, speed in zip(layers, speeds) if speed > 0]
        if tuning == "full"
        else [(light_parameters(encoder), config.light_lr)]
    )
    rates = [*body, (model.decoder_parameters, config.lr)]
    pairs = [decayed_groups(model, params, lr, config.weight_decay) for params, lr in rates]
    groups = [group for pair in pairs for group in pair if group["params"]]
    if task_prompt:
        groups.append(
            {"params": [model.task_prompt.weight], "lr": config.task_prompt_lr, "weight_decay": 0.0}
        )
    freeze_the_rest(model, groups)
    return groups


def freeze_the_rest(model: Sum, groups: list[dict]) -> None:
    """Only the parameters of AdamW's ``groups`` get a gradient."""
    trained = {id(p) for group in groups for p in group["params"]}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)


def decayed_groups(model: Sum, params: list[nn.Parameter], lr: float, decay: float) -> list[dict]:
    """Two of AdamW's groups: with weight decay, and, for biases, norms and embeddings, without it."""
    small = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    plain = [p for p in params if p.dim() > 1 and id(p) not in small]
    other = [p for p in params if p.dim() <= 1 or id(p) in small]
    return [
        {"params": plain, "lr": lr, "weight_decay": decay},
        {"params": other, "lr": lr, "weight_decay": 0.0},
    ]
