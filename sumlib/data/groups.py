"""The test sets by group of the tables, from section `datasets` of params.yaml; loads no reader of data."""

from collections.abc import Mapping

from sumlib.config.params import DatasetConfig, load_datasets
from sumlib.data.tasks import TASKS


def task_groups(datasets: Mapping[str, DatasetConfig]) -> dict[str, list[str]]:
    """The test sets by group of the tables, in the order of the paper's groups and of the file."""
    tests = {name: entry for name, entry in datasets.items() if entry.role == "test"}
    groups = dict.fromkeys([*TASKS, *(entry.group for entry in tests.values() if entry.group)])
    return {group: [name for name, entry in tests.items() if entry.group == group] for group in groups}


TASK_GROUPS = task_groups(load_datasets())
"""The 14 test sets, grouped as the paper does."""
