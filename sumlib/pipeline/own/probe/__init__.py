"""The forgetting probe: how well a tuned model still agrees with SAM where SAM was sure."""

from sumlib.base.lazy import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "answers": ["FOUNDATION", "LOST", "TUNED", "ask", "forgetting_probe", "summary"],
        "masks": ["Extent", "Probe", "levels", "make_probe"],
    },
)
