"""Make a tile in one job, with its bulk files on a scratch disk: generate, partition and load, one behind the other.

Runs the three steps as they are. The bulk files go to a folder of this job alone and vanish with it; manifests,
sentinels and what the store gets go where they always go. Whatever ends the job, the next attempt begins anew, on any
node; chunks that are loaded are not loaded again.

Fails if the scratch folder does not exist on the node, or a step fails.
"""

from pathlib import Path
from types import SimpleNamespace

import generate_tile
import ingest_tile
import partition_tile
from skymill.scratch import scratch_folder
from skymill.step import start_step


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``make_tile``."""
    dataset = start_step(snakemake)
    transaction, tile = snakemake.wildcards.txn, snakemake.wildcards.tile
    loaded = Path(snakemake.output.manifest)
    generated, partitioned = (
        dataset.results / stage / transaction / f"{tile}.json" for stage in ("generated", "partitioned")
    )
    common = {name: getattr(snakemake, name) for name in ("rule", "config", "params", "log", "wildcards")}

    def run(step, inputs: dict, outputs: dict) -> None:  # noqa: ANN001 - a module
        step.main(SimpleNamespace(**common, input=SimpleNamespace(**inputs), output=SimpleNamespace(**outputs)))

    with scratch_folder(dataset.config["scratch"], dataset.results, f"{transaction}.{tile}") as folder:
        run(generate_tile, {"plan": snakemake.input.plan}, {"bulk": folder / "generated", "manifest": generated})
        run(
            partition_tile,
            {"bulk": folder / "generated", "manifest": generated},
            {"bulk": folder / "partitioned", "manifest": partitioned},
        )
        run(
            ingest_tile,
            {"started": snakemake.input.started, "bulk": folder / "partitioned", "manifest": partitioned},
            {"manifest": loaded},
        )


if "snakemake" in globals():
    main(globals()["snakemake"])
