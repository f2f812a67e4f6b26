"""Generate one chunk by hand, without Snakemake: a CSV file of each table.

    python scripts/generate_chunk.py -c configs/fakedb/config.yaml --chunk 3525

The rows are those that the workflow makes, unless --objects or --visits ask for a small trial.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from generate_tile import generate_chunk
from skymill.boxes import chunk_boxes, edge_boxes
from skymill.columns import Rows
from skymill.config import Dataset, Table, load_dataset
from skymill.density import UniformDensity, box_area_sq_deg
from skymill.errors import ConfigError, SkymillError, in_words
from skymill.rowmaker import BoxStreams, RowMaker, fill_columns, load_density
from skymill.selection import chunks_near
from skymill.streams import NO_CHUNK, stream
from skymill.textfile import TableFile
from skymill.visits import Visits, make_regular_table


def trial_visits(dataset: Dataset, table: Table, chunk: int, count: int) -> dict:
    """The columns of a few visits whose centres lie in one chunk."""
    if table.from_file is not None:
        raise ConfigError(f"--visits: {table.name} is read from {table.from_file.name}; leave the option out")
    rows = Rows(count, 0, NO_CHUNK, 0, {})
    random = stream(dataset.seed, table.name, "#trial", chunk)
    rows.ra_deg, rows.dec_deg = UniformDensity(0.0).sample(random, dataset.chunker.chunk_box(chunk), 0, count)
    fill_columns(table, rows, BoxStreams(dataset.seed, table, NO_CHUNK, 0))
    return rows.columns


def generate_by_hand(
    dataset: Dataset,
    chunk: int,
    folder: Path,
    edge_only: bool = False,
    objects: int | None = None,
    visits: int | None = None,
) -> list[TableFile]:
    """Generate a chunk and the regular tables.

    Parameters
    ----------
    dataset : `Dataset`
    chunk : `int`
    folder : `pathlib.Path`
        Where the files go; made if need be.
    edge_only : `bool`
        Whether to make only the boxes at the edges.
    objects : `int`, optional
        Mean number of rows of each director in the chunk, instead of its density.
    visits : `int`, optional
        Number of visits, all in this chunk, instead of those of the whole sky.

    Returns
    -------
    files : `list` [`TableFile`]
        What was written, also files without rows (which are not made).

    Raises
    ------
    ConfigError
        If the partitioning has no such chunk.
    """
    chunker = dataset.chunker
    for option, value in (("--objects", objects), ("--visits", visits)):
        if value is not None and value < 0:
            raise ConfigError(f"{option} {value}: it must be at least 0")
    if not chunker.is_chunk(np.array([chunk]))[0]:
        near = f"; {chunks_near(chunker, chunk)}" if 0 <= chunk <= chunker.last_chunk else ""
        raise ConfigError(
            f"--chunk {chunk}: the partitioning has no such chunk{near}; its {chunker.num_chunks} chunks are numbered from 0 to {chunker.last_chunk}, "
            "with gaps: scripts/locate_points.py tells the chunk of a position"
        )
    folder.mkdir(parents=True, exist_ok=True)
    files, tables_of_visits, made = [], {}, {}
    for table in dataset.tables_of("regular"):
        if visits is not None and table.visit is not None and table.visits is None:
            made[table.name] = trial_visits(dataset, table, chunk, visits)
    for table in dataset.tables_of("regular"):
        columns = made.get(table.name) or make_regular_table(dataset, table, made)
        with TableFile(folder / f"{table.name}.csv", table.columns) as file:
            file.add(columns)
        files.append(file)
        if table.visit is not None:
            tables_of_visits[table.name] = Visits(columns, table)
    densities = {}
    for table in dataset.tables_of("director"):
        area = box_area_sq_deg(chunker.chunk_box(chunk))
        densities[table.name] = (
            load_density(table, dataset.folder) if objects is None else UniformDensity(objects / area)
        )
    maker = RowMaker(dataset, densities, tables_of_visits)
    boxes = sorted((edge_boxes if edge_only else chunk_boxes)(chunker, chunk))
    for table in dataset.tables_of("director"):
        files += generate_chunk(maker, table, chunk, folder, boxes, halo=False).values()
    return files


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description="Generate one chunk by hand, as a CSV file of each table (tab, no header)."
    )
    parser.add_argument("-c", "--config", type=Path, required=True, help="configuration of the dataset (YAML)")
    parser.add_argument("--chunk", type=int, required=True, help="chunk id")
    parser.add_argument("--edge-only", action="store_true", help="make only the rows near the chunk's edges")
    parser.add_argument("--objects", type=int, help="a small trial: about so many rows of each director in the chunk")
    parser.add_argument("--visits", type=int, help="a small trial: so many visits, with their centres in the chunk")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the files (default: here)")
    options = parser.parse_args(arguments)
    try:
        dataset = load_dataset(options.config)
        files = generate_by_hand(
            dataset, options.chunk, options.out, options.edge_only, options.objects, options.visits
        )
    except (SkymillError, OSError) as error:
        print(f"generate_chunk: {in_words(error)}", file=sys.stderr)
        return 1
    for file in files:
        print(f"{file.rows:>10} rows {file.bytes:>12} bytes  {file.path if file.rows else '(no rows, no file)'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
