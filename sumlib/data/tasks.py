"""What kinds of mask there are: the ids of the task prompt (paper section 3.3)."""

from enum import IntEnum


class Task(IntEnum):
    """Which kind of mask is meant."""

    UNSPECIFIED = 0
    """SAM's pseudo-labels, and test sets of a kind that a model was not trained on."""
    SALIENT = 1
    ENTITY = 2
    PART = 3

    @property
    def title(self) -> str:
        """As in the columns of results: "salient", "entity", "part"."""
        return self.name.lower()


TASKS = tuple(task.title for task in Task if task)
"""The task groups in the order of the paper's tables."""
