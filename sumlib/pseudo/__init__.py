"""Pseudo-labels: SAM's automatic masks, their refined versions and certainty (docs/method.md §2, §3)."""

from sumlib.base.lazy import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "automatic": ["AutomaticMasks", "Tally"],
        "store": ["Label", "PseudoLabels", "add_uncertainty", "generate"],
    },
)
