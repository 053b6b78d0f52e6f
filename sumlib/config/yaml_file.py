"""Small YAML files other than `params.yaml`, read with the same care."""

from pathlib import Path
from typing import Any

import yaml

from sumlib.config.params import LARGEST_FILE, _parse
from sumlib.config.schema import ConfigError, Reader


def read_yaml(path: Path) -> tuple[Reader, Any]:
    """A reader that names the file, and the file's plain values (None if it is empty).

    Raises ConfigError if it is no UTF-8 text, no YAML, holds a key twice or is too large; OSError if it
    cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.yaml").write_text("side: 3")
    ...     read_yaml(Path(folder, "a.yaml"))[1]
    {'side': 3}
    """
    path = Path(path)
    reader = Reader(str(path))
    if path.stat().st_size > LARGEST_FILE:
        reader.fail(f"it has {path.stat().st_size:,} bytes; allowed: {LARGEST_FILE:,}; write it anew")
    try:
        return reader, _parse(reader, path.read_text(encoding="utf-8-sig"))
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
