"""The progress bar of long work."""

from collections.abc import Iterable

from tqdm import tqdm


def with_bar(
    items: Iterable, title: str, shown: bool = True, total: int | None = None, done: int = 0
) -> Iterable:
    """``items`` with a progress bar, if ``shown``; ``total`` includes the ``done`` items not in ``items``.

    TQDM_DISABLE=1 in the environment hides it, as the pipeline does.
    """
    return tqdm(items, desc=title, total=total, initial=done) if shown else items
