"""Pseudo-labels: SAM's automatic masks on unlabeled images, their refined versions and certainty (METHOD sections 2 and 3)."""

from sumlib.pseudo.automatic import AutomaticMasks, Tally
from sumlib.pseudo.store import Label, PseudoLabels, add_uncertainty, generate

__all__ = ["AutomaticMasks", "Label", "PseudoLabels", "Tally", "add_uncertainty", "generate"]
