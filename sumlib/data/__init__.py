"""Data sets: one `Sample` type, one layout a file, a registry of names."""

from sumlib.base.lazy import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "dataset": ["BadSample", "Dataset", "Entry", "Sample"],
        "images": ["BadSampleError"],
        "groups": ["TASK_GROUPS"],
        "registry": ["REGISTRY", "open_dataset"],
    },
)
