"""Write the plan file of a wave: which transaction and tile each newly selected chunk belongs to.

Reads nothing: the wave was worked out when the workflow was parsed. Writes ``ingest/plan_<wave>.json``, and the
forecast of the wave as ``plan.json`` and ``plan.md``, and tile by tile as ``ingest/forecast_<wave>.json``. Fails if no
chunk has a row, if the run will not fit on the disk, or if the file exists already with another content.
"""

from pathlib import Path

import numpy as np

from skymill.errors import SkymillError
from skymill.files import read_json, write_json
from skymill.forecast import forecast_path, write_forecasts
from skymill.selection import expand_ranges
from skymill.step import log, start_step
from skymill.survey_plan import plan_survey, refuse_full_disk, write_plan


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``plan_wave``."""
    dataset = start_step(snakemake)
    path, wave = Path(snakemake.output[0]), snakemake.params.wave
    if path.exists() and read_json(path) != wave:
        raise SkymillError(f"{path} was written by another run meanwhile; run again, it will be read")
    transactions = wave["transactions"].values()
    chunks = np.concatenate([expand_ranges(ranges) for tiles in transactions for ranges in tiles.values()])
    plan, forecasts = plan_survey(dataset, dataset.results, np.sort(chunks), len(transactions), snakemake.params.jobs)
    refuse_full_disk(plan, dataset.config["check_disk"])
    write_plan(dataset.results, plan)
    write_forecasts(forecast_path(dataset.results, wave["wave"]), forecasts)
    write_json(path, wave)
    log.info("planned %d chunks in %d transactions", wave["chunks"], len(wave["transactions"]))


if "snakemake" in globals():
    main(globals()["snakemake"])
