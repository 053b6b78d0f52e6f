"""SAM's interactive predictor with the task prompt."""

import numpy as np
import torch
from segment_anything import SamPredictor

from sumlib.model.sum import Sum


class SumPredictor(SamPredictor):
    """SAM's predictor with the task prompt: ``predict(..., task=1)``; all else is as in `SamPredictor`.

    Raises ValueError for a model of another architecture, which `SamPredictor` cannot run: use `Sum.encode`
    and `Sum.decode`.
    """

    def __init__(self, model: Sum):
        if model.architecture:
            raise ValueError(
                "SumPredictor runs models in SAM's architecture; one in another, here "
                f"{model.architecture}, is used through Sum.encode and Sum.decode"
            )
        super().__init__(model.sam)
        self.task_prompt = model.task_prompt

    @torch.no_grad()
    def predict(self, *args, task: int | None = None, **kwargs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`SamPredictor.predict` with the task id ``task``, or without a task prompt if None.

        SUM is trained to get it in the first round only.

        Raises:
            ValueError: no such task.
        """
        if task is not None and task not in range(self.task_prompt.num_embeddings):
            raise ValueError(f"no task {task!r}: known are 0 to {self.task_prompt.num_embeddings - 1}")
        plain = self.features
        if task is not None and self.is_image_set:
            self.features = plain + self.task_prompt.weight[task][:, None, None]
        try:
            return super().predict(*args, **kwargs)
        finally:
            self.features = plain
