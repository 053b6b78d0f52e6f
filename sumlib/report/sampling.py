"""What uncertainty-aware sampling gains with one boundary point: the numbers of Figure 15, beside the paper's
Table 5."""

import numpy as np
import pandas as pd

from sumlib.report.intervals import Bootstrap, Estimate, MissingRun
from sumlib.report.results import METRICS, dataset_order
from sumlib.report.tables import paper_tables

WITH, WITHOUT = "SUM", "SUM w/o uncertainty sampling"


def sampling_gains(bootstrap: Bootstrap) -> pd.DataFrame:
    """SUM - SUM w/o uncertainty sampling (FT-Medium) by data set, task group and over all.

    Columns: metric, place (data set, task group or "all"), paper, value, low, high (points; NaN where there
    is none).
    """
    table = paper_tables().query("table == '5'")
    places = table["dataset"].where(table["dataset"] != "average", table["task"])
    paper = table.assign(place=places).set_index(["metric", "place", "model"])["value"]
    models = {(WITH, "FT-Medium"): 1.0, (WITHOUT, "FT-Medium"): -1.0}
    rows = []
    for metric in METRICS:
        for place in [name for task, names in dataset_order().items() for name in (*names, task)] + ["all"]:
            try:
                gain = bootstrap.compare(models, place, prompt="boundary-point", rounds=1, metric=metric)
            except MissingRun:
                gain = Estimate(np.nan, np.nan, np.nan)
            known = paper.get((metric, place, WITH), np.nan) - paper.get((metric, place, WITHOUT), np.nan)
            rows.append((metric, place, known, gain.value, gain.low, gain.high))
    return pd.DataFrame(rows, columns=["metric", "place", "paper", "value", "low", "high"])
