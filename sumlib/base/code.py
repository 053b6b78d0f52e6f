"""Which modules of sumlib a piece of code uses, and a hash of what they do, not of their words.

Hashed are syntax trees. A change of a comment, a docstring or the layout leaves the hash as it is, a change
of a number or a name does not. Imports are followed as they stand in the files, also those inside functions
and those through the lazy faces of packages (`sumlib.base.lazy`).
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

from sumlib.base.paths import ROOT

PACKAGE = "sumlib"
OPENED_BY_NAME = (f"{PACKAGE}.data.layouts",)
"""Packages whose modules params.yaml names: who imports one uses all of its modules."""


def code_hash(*modules: ModuleType | str, root: Path | None = None) -> str:
    """Hash (16 hex digits) of the code of ``modules`` and of all modules of sumlib that they import.

    Args:
        modules: modules, or their dotted names ("sumlib.losses").
        root: the folder that holds ``sumlib/``; None: this repository.

    Raises:
        ModuleNotFoundError: no file of that name.

    >>> code_hash("sumlib.metrics") == code_hash("sumlib.metrics")
    True
    >>> code_hash("sumlib.metrics") == code_hash("sumlib.losses")
    False
    """
    root = ROOT if root is None else root
    digest = hashlib.sha256()
    for name in modules_used(*modules, root=root):
        digest.update(f"{name} {tree_hash(_read(name, root))}\n".encode())
    return digest.hexdigest()[:16]


def modules_used(*modules: ModuleType | str, root: Path | None = None) -> list[str]:
    """Dotted names of ``modules`` and of all modules of sumlib that they import, sorted.

    Packages are left out whose ``__init__.py`` does nothing: no statement but constants, or a lazy face.
    Errors as `code_hash`.

    >>> modules_used("sumlib.uncertainty"), modules_used("sumlib.base.files")
    (['sumlib.uncertainty'], ['sumlib.base.files'])
    """
    root = ROOT if root is None else root
    names = [module if isinstance(module, str) else module.__name__ for module in modules]
    for name in names:
        if module_file(name, root) is None:
            raise ModuleNotFoundError(f"no module {name!r} under {root}")
    used: set[str] = set()
    while names:
        name = names.pop()
        if name in used:
            continue
        used.add(name)
        if face_table(name, root) is None:  # what a face hands on counts where it is asked for
            names += imported(_read(name, root), name, root=root)
    return sorted(name for name in used if not _does_nothing(name, root))


def imported(source: str, name: str = "", *, root: Path | None = None) -> set[str]:
    """Dotted names of the modules of sumlib that the code ``source`` imports itself.

    ``name`` is the module whose code it is, where it is one. Parent packages are among them, since importing
    a module runs them. A name that a lazy face hands on counts as the module it comes from; a face that is
    imported as a whole counts as all of its modules.

    >>> sorted(imported("from sumlib.model import load_sam"))
    ['sumlib', 'sumlib.model', 'sumlib.model.checkpoint']
    """
    root = ROOT if root is None else root
    modules: set[str] = set()
    for node in _imports(source):
        if isinstance(node, ast.Import):
            for alias in node.names:
                modules |= _whole(alias.name, root)
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, name, root)
            for alias in node.names:
                modules |= _part(base, alias.name, root)
    return {parent for module in modules for parent in _with_parents(module)}


@cache
def tree_hash(source: str) -> str:
    """SHA-256 of the syntax tree of ``source``, without docstrings, bare strings, comments, positions.

    >>> tree_hash("x = 1  # one") == tree_hash('"Words."\\nx = 1'), tree_hash("x = 1") == tree_hash("x = 2")
    (True, False)
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                setattr(node, field, [statement for statement in statements if not _is_text(statement)])
    return hashlib.sha256(_dump(tree).encode()).hexdigest()


def _dump(node: object) -> str:
    """Like `ast.dump`, but the same in all versions of Python: fields that are empty are left out."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
        inner = ", ".join(f"{name}={_dump(value)}" for name, value in fields if name != "kind")
        # the constant None is the one whose empty value means something
        inner = inner or ("value=None" if isinstance(node, ast.Constant) else "")
        return f"{type(node).__name__}({inner})"
    return f"[{', '.join(map(_dump, node))}]" if isinstance(node, list) else repr(node)


def module_file(name: str, root: Path | None = None) -> Path | None:
    """The file of the module or package with the dotted ``name``, None if there is none under ``root``."""
    place = (ROOT if root is None else root).joinpath(*name.split("."))
    files = (place.with_suffix(".py"), place / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def face_table(name: str, root: Path | None = None) -> dict[str, str] | None:
    """What a package with a lazy face hands on, {public name: dotted module}; None for every other module."""
    root = ROOT if root is None else root
    file = module_file(name, root)
    if file is None or file.name != "__init__.py":
        return None
    groups = _face_groups(file.read_text(encoding="utf-8"))
    if groups is None:
        return None
    return {public: f"{name}.{module}" for module, group in groups.items() for public in group}


@cache
def _face_groups(source: str) -> dict[str, list[str]] | None:
    """The table of a lazy face, {module: its public names}, as it stands in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "face":
            return ast.literal_eval(node.args[1])
    return None


@cache
def _imports(source: str) -> list[ast.Import | ast.ImportFrom]:
    """The import statements that are run in ``source``."""
    nodes = _runtime_nodes(ast.parse(source))
    return [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


def _whole(name: str, root: Path) -> set[str]:
    """What ``import name`` brings in: nothing if it is not of sumlib."""
    if name.split(".")[0] != PACKAGE or module_file(name, root) is None:
        return set()
    if name in OPENED_BY_NAME:
        files = module_file(name, root).parent.glob("*.py")
        return {name, *(f"{name}.{file.stem}" for file in files if file.stem != "__init__")}
    return {name, *(face_table(name, root) or {}).values()}


def _part(base: str, name: str, root: Path) -> set[str]:
    """What ``from base import name`` brings in."""
    if base.split(".")[0] != PACKAGE or module_file(base, root) is None:
        return set()
    if name == "*":
        return _whole(base, root)
    table = face_table(base, root) or {}
    if name in table:
        return {base, table[name]}
    return {base} | _whole(f"{base}.{name}", root)


def _base(node: ast.ImportFrom, name: str, root: Path) -> str:
    """The absolute name behind ``from``, in the module ``name``."""
    if not node.level:
        return node.module or ""
    file = module_file(name, root)
    is_package = file is not None and file.name == "__init__.py"
    parts = name.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *filter(None, [node.module])])


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a tree, except what stands under `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _runtime_nodes(node)


def _does_nothing(name: str, root: Path) -> bool:
    if module_file(name, root).name != "__init__.py":
        return False
    body = ast.parse(_read(name, root)).body
    return face_table(name, root) is not None or all(
        isinstance(getattr(node, "value", None), ast.Constant) for node in body
    )


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _read(name: str, root: Path) -> str:
    return module_file(name, root).read_text(encoding="utf-8")
