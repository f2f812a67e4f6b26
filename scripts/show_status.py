"""Say how far a dataset is, at any time: before, during and after a run, and after one that was killed.

    snakemake status
    python scripts/show_status.py --config configs/fakedb/config.yaml

Reads records only. Prints the counts of each transaction and table, and the chunks that have failed with their reasons.
Writes, below ``results/<database>``, the same as ``status.md`` and ``status.json``, and files of chunk ids, an id or a
range a line: ``target.clg``, ``assigned.clg``, ``completed.clg``, ``limbo.clg`` (failed). Changes nothing else.
"""

import argparse
import os
import sys
from pathlib import Path

from skymill.config import Dataset
from skymill.errors import SkymillError, in_words
from skymill.plan import State
from skymill.status import Status
from skymill.step import log, start_step

PROJECT = Path(__file__).resolve().parents[1]


def show_status(dataset: Dataset) -> None:
    """Print how far a dataset is, and write it to files."""
    status = Status.read(State.read(dataset.results, dataset))
    print(status.text())
    written = status.write()
    print(f"Written: {', '.join(map(str, written))}")
    log.info("%d of %d chunks are complete", len(status.chunks["completed"]), len(status.chunks["target"]))


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    from skymill.schema import read_yaml

    parser = argparse.ArgumentParser(description="Say how far a dataset is. Works at any time, beside a run, too.")
    default = PROJECT / "configs" / "fakedb" / "config.yaml"
    parser.add_argument("-c", "--config", type=Path, default=default, help="the dataset (default: that of fakedb)")
    parser.add_argument("--chunks", help="another selection, as the key chunks: all, or ids and ranges")
    parser.add_argument("--directory", type=Path, help="the folder that holds results/, if it is not the present one")
    options = parser.parse_args(arguments)
    try:
        config = read_yaml(options.config) | ({"chunks": options.chunks} if options.chunks else {})
        folder = options.config.resolve().parent
        if options.directory:
            os.chdir(options.directory)
        show_status(Dataset.from_config(config, folder))
    except (SkymillError, OSError) as error:
        print(f"show_status: {in_words(error)}", file=sys.stderr)
        return 1
    return 0


if "snakemake" in globals():
    show_status(start_step(globals()["snakemake"]))
elif __name__ == "__main__":
    sys.exit(main())
