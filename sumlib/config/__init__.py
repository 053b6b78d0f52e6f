"""`params.yaml` as small frozen dataclasses."""

from sumlib.base.lazy import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "params": ["Config", "DatasetConfig", "load_config", "load_datasets"],
        "runs": ["RunConfig"],
        "schema": ["ConfigError"],
    },
)
