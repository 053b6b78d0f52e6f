"""Faces of packages: names that a package hands on, each loaded from its module at first use (PEP 562).

`sumlib.model.load_sam` is found there, and importing `sumlib.model` alone loads none of its modules. From the
table `sumlib.base.code` reads which modules a notebook uses.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module


def face(package: str, names: Mapping[str, Sequence[str]]) -> tuple[Callable, Callable, list[str]]:
    """``__getattr__``, ``__dir__``, ``__all__`` of a package that hands on ``names``, {module: names in it}.

    >>> find, listed, public = face("sumlib.base", {"paths": ["ROOT"]})
    >>> find("ROOT").name == find("paths").ROOT.name, listed()
    (True, ['ROOT'])
    """
    module_of = {name: module for module, group in names.items() for name in group}

    def find(name: str):
        if name in module_of:
            return getattr(import_module(f"{package}.{module_of[name]}"), name)
        if name in names:
            return import_module(f"{package}.{name}")
        raise AttributeError(
            f"module {package!r} has no attribute {name!r}; it hands on {', '.join(sorted(module_of))}"
        )

    return find, lambda: sorted(module_of), sorted(module_of)
