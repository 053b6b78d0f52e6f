"""Training: the loop, its batches, the interactive step, what is tuned."""

from sumlib.base.lazy import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "loop": ["Schedule", "fingerprint", "fit"],
    },
)
