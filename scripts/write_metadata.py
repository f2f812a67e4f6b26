"""Write ``configs/ingest/metadata.json``, by which the tool ``qserv-ingest`` finds the partitioned files that were kept.

Reads the manifests of all partitioned tiles. A tile whose files are not there any more is left out, with a warning.
Fails if no tile is left.
"""

import sys
from pathlib import Path

from skymill.derived import chunks_not_kept, ingest_metadata
from skymill.errors import SkymillError
from skymill.files import write_json
from skymill.step import log, start_step


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``write_metadata``."""
    dataset = start_step(snakemake)
    metadata = ingest_metadata(dataset, dataset.results)
    lost = chunks_not_kept(dataset.results)
    if lost:
        text = f"keep.partitioned: of {lost} chunks that were made before no files are kept"
        if not any(entry.get("chunks") for table in metadata["tables"] for entry in table["data"]):
            raise SkymillError(
                f"{text}, and there are no others to list; to have their files, make them anew under another name (key database), or drop the key"
            )
        log.warning(text)
        print(f"write_metadata: {text}; they are not listed", file=sys.stderr)
    write_json(Path(snakemake.output[0]), metadata)
    for table in metadata["tables"]:
        log.info("%s: %d folders", table["schema"], len(table["data"]))


if "snakemake" in globals():
    main(globals()["snakemake"])
