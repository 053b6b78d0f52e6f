"""The hash of code: words change nothing, code does, imports are followed."""

import pytest

import sumlib.losses
from sumlib.base.code import code_hash, imported, modules_used, tree_hash

FILES = {
    "__init__": '"""A package."""\n__version__ = "1"\n',
    "low": '"""Words."""\nX = 1\n',
    "high": "from sumlib.low import X\n\n\ndef f():\n    '''Words.'''\n    return X  # a comment\n",
    "late": "def f():\n    from .low import X\n    return X\n",
    "typed": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sumlib.low import X\n",
    "base/__init__": '"""Empty."""\n',
    "base/lazy": "def face(*_): ...\n",
    "wing/__init__": "from sumlib.base.lazy import face\n"
    "__getattr__, __dir__, __all__ = face(__name__, {'a': ['first'], 'b': ['second']})\n",
    "wing/a": "first = 1\n",
    "wing/b": "second = 2\n",
    "user": "from sumlib.wing import first\n",
    "user_of_all": "import sumlib.wing\n",
}


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "sumlib" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def change(root, name, old, new):
    path = root / "sumlib" / f"{name}.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_words_change_nothing(root):
    before = code_hash("sumlib.high", root=root)
    change(root, "high", "  # a comment", "  # another\n")
    change(root, "high", "Words.", "Other words.")
    change(root, "low", '"""Words."""\nX = 1\n', 'X = 1\n"""What X is."""\n')
    assert code_hash("sumlib.high", root=root) == before


def test_code_changes_it_also_that_of_a_module_far_below(root):
    names = ("sumlib.high", "sumlib.late", "sumlib.typed", "sumlib.user")
    before = [code_hash(name, root=root) for name in names]
    change(root, "low", "X = 1", "X = 2")
    after = [code_hash(name, root=root) for name in names]
    assert [a == b for a, b in zip(before, after)] == [False, False, True, True]


def test_through_a_lazy_face_only_the_module_that_is_asked_for_counts(root):
    assert modules_used("sumlib.user", root=root) == ["sumlib.user", "sumlib.wing.a"]
    assert modules_used("sumlib.user_of_all", root=root) == [
        "sumlib.user_of_all",
        "sumlib.wing.a",
        "sumlib.wing.b",
    ]


def test_relative_imports_are_found(root):
    assert imported("from .b import second\nfrom .. import low", "sumlib.wing.a", root=root) == {
        "sumlib",
        "sumlib.wing",
        "sumlib.wing.b",
        "sumlib.low",
    }


def test_bodies_of_a_docstring_alone_are_hashed():
    assert tree_hash("def f():\n    'Words.'") != tree_hash("def f():\n    return 1")
    assert tree_hash("x = 'text'") != tree_hash("x = 'other'")  # a string that is used is no docstring


def test_the_real_modules():
    assert code_hash(sumlib.losses) == code_hash("sumlib.losses")
    assert {"sumlib.losses", "sumlib.model.fast_decoder", "sumlib.train.loop"} <= set(
        modules_used("sumlib.finetune")
    )
    assert "sumlib.report.claims" not in modules_used("sumlib.finetune")
    with pytest.raises(ModuleNotFoundError, match="no_such"):
        code_hash("sumlib.no_such")
