"""Pseudo-labels: SAM's automatic masks on unlabeled images, their refined versions and certainty (METHOD sections 2 and 3)."""

from sumlib.base.lazy import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "automatic": ["AutomaticMasks", "Tally"],
        "store": ["Label", "PseudoLabels", "add_uncertainty", "generate"],
    },
)
