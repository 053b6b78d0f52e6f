"""Which method a run is trained by: "sum", or a file of this folder.

A method is one file here with a subclass of `sumlib.train.method.Method`, named by a line ``METHOD =
TheClass``, and an entry under `runs:` in params.yaml with ``method: the_file``. If the class of its model is
not `Sum`, the file names that too, ``ARCHITECTURE = TheModel``. Files are imported when they are asked for,
so that a run depends on its own alone.
"""

from importlib import import_module

from sumlib.config.runs import SUM, method_names, nearest
from sumlib.train.method import Method


def load_method(name: str) -> type[Method]:
    """The class of a method of `method_names`; ValueError with the nearest names if there is none."""
    if name == SUM:
        return Method
    if name not in (known := method_names()):
        raise ValueError(f"no method {name!r}; the nearest are: {nearest(name, known)}")
    return import_module(f"sumlib.methods.{name}").METHOD
