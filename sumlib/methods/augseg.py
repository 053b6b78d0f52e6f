"""AugSeg with prompts: an EMA teacher's masks, learnt on a strong view of the image (docs/method.md §7)."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from sumlib.config.params import AugSegConfig
from sumlib.methods.teacher import Teacher
from sumlib.model.sum import Sum
from sumlib.train.batches import Batch
from sumlib.train.interactive import first_prompt, interactive_step
from sumlib.train.method import Lesson, Method


class AugSeg(Method):
    """Human masks as usual; on unlabeled images the teacher's masks for prompts of `run.consistency`.

    With `run.uncertainty_loss` the pseudo-labels are learnt too, each with half of the weight.
    """

    companion: Teacher

    def accompany(self, model: Sum) -> None:
        self.companion = Teacher(model, self.config.ema)

    def before_step(self, model: Sum) -> None:
        self.companion.follow(model)

    def lessons(self) -> list[Lesson]:
        human = Lesson(self.learn, unlabeled=False)
        if self.run.uncertainty_loss:
            return [
                human,
                Lesson(self.learn_from_teacher, 0.5, human=False),
                Lesson(self.learn, 0.5, human=False),
            ]
        return [human, Lesson(self.learn_from_teacher, human=False)]

    def learn_from_teacher(
        self, model: Sum, batch: Batch, generator: torch.Generator, share: float = 1.0
    ) -> dict[str, float]:
        """The teacher answers on the images as they are, the student learns its masks on a strong view."""
        several = self.run.consistency == "mixed-multi"
        kind = "mixed" if several else self.run.consistency
        first = first_prompt(batch, None, generator, self.config.box_jitter, kind)
        target = self.companion.predict(batch.pixels, batch.image, first, self.config.bf16)
        lesson = replace(
            batch,
            pixels=strong_view(batch.pixels, generator, self.config.augseg),
            target=target,
            certainty=torch.ones_like(batch.certainty),
        )
        rounds = self.config.rounds if several else 1
        return interactive_step(
            model, lesson, self.run, self.config, generator, share, rounds=rounds, first=first
        )


def strong_view(pixels: Tensor, generator: torch.Generator, config: AugSegConfig) -> Tensor:
    """Normalised, padded images (B, 3, S, S) with other light, colours, sharpness and noise; padding stays.

    Intensity-based changes only, each with a probability, as AugSeg draws a random number of them.
    """
    b, device = len(pixels), pixels.device
    draw = lambda *shape: torch.rand(*shape, generator=generator).to(device)
    padding = (pixels == 0).all(1, keepdim=True)
    does = draw(4, b, 1, 1, 1) < config.probability
    contrast = 1 - config.contrast + 2 * config.contrast * draw(b, 1, 1, 1)
    brightness = 2 * config.brightness * (draw(b, 1, 1, 1) - 0.5)
    view = torch.where(does[0], pixels * contrast + brightness, pixels)
    gain = 1 - config.gain + 2 * config.gain * draw(b, 3, 1, 1)
    shift = 2 * config.shift * (draw(b, 3, 1, 1) - 0.5)
    view = torch.where(does[1], view * gain + shift, view)
    view = torch.where(does[2], F.avg_pool2d(F.pad(view, (1, 1, 1, 1), mode="replicate"), 3, stride=1), view)
    noise = torch.randn(pixels.shape, generator=generator).to(device)
    view = torch.where(does[3], view + config.noise * draw(b, 1, 1, 1) * noise, view)
    return view.masked_fill(padding, 0.0)


METHOD = AugSeg
