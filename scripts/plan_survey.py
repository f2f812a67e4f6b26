"""Forecast the selection: rows and bytes of each table, disk, processor time, the hottest chunks.

Reads the configuration and what it names. Writes ``plan.json`` and ``plan.md`` below the results folder, and prints the
latter. Nothing else is changed, and no chunk is made. Fails if no selected chunk has a row.
"""

from skymill.step import start_step
from skymill.survey_plan import plan_survey, write_plan


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``plan``."""
    dataset = start_step(snakemake)
    chunks, root = dataset.selection().chunks, dataset.results
    plan, _ = plan_survey(dataset, root, chunks, snakemake.params.transactions, snakemake.params.jobs)
    print(write_plan(root, plan))


if "snakemake" in globals():
    main(globals()["snakemake"])
