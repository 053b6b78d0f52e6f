"""What a method of training is; the base class is SUM's own, and that of its ablations."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from segment_anything.modeling import Sam
from torch import nn

from sumlib.config.params import FinetuneConfig
from sumlib.config.runs import RunConfig
from sumlib.model.sum import Sum
from sumlib.train import tuning
from sumlib.train.batches import Batch
from sumlib.train.interactive import interactive_step

Learn = Callable[[Sum, Batch, torch.Generator, float], dict[str, float]]
"""Back-propagates ``share`` times the loss of a batch: (model, batch, generator, share) -> numbers to log."""


@dataclass(frozen=True)
class Lesson:
    """What an iteration's images teach: a step, the weight of its loss, and which images it takes."""

    learn: Learn
    weight: float = 1.0
    human: bool = True
    unlabeled: bool = True


class Method:
    """Interactive fine-tuning as `run` says. Another method is a subclass in a file of sumlib/methods/.

    `finetune` calls, in this order: `build`, `prepare`, `accompany`, `parameter_groups`, `lessons`; then
    `before_step` and the lessons for each step; then `finish`. A subclass overrides what it does otherwise.
    """

    companion: nn.Module | None = None
    """A model beside the one in training, if any; a checkpoint to resume from holds it too."""

    def __init__(self, run: RunConfig, config: FinetuneConfig):
        self.run, self.config = run, config

    def build(self, sam: Sam) -> Sum:
        """The model to train, around the foundation model; PyTorch's own generator draws new weights."""
        return Sum(sam)

    def prepare(self, model: Sum, generator: torch.Generator) -> None:
        """Add what `run.tuning` trains."""
        tuning.prepare(model, self.run.tuning, self.config, generator)

    def accompany(self, model: Sum) -> None:
        """Make the `companion` of the prepared model, which is on its device."""

    def parameter_groups(self, model: Sum) -> list[dict]:
        """AdamW's groups, each with its "lr" and "weight_decay"; what is in none of them is frozen."""
        task_prompt = self.run.task_prompt != "none"
        return tuning.parameter_groups(model, self.config, task_prompt, self.run.tuning)

    def learn(
        self, model: Sum, batch: Batch, generator: torch.Generator, share: float = 1.0
    ) -> dict[str, float]:
        """The method's own step."""
        return interactive_step(model, batch, self.run, self.config, generator, share)

    def lessons(self) -> list[Lesson]:
        """What is learnt from an iteration's images; for each kind of image the weights add up to one."""
        return [Lesson(self.learn)]

    def before_step(self, model: Sum) -> None:
        """Called at the start of every step, once in each process."""

    def finish(self, model: Sum) -> None:
        """After the training: leave the model as it is saved."""
        tuning.finish(model)
