"""Check that the edges of chunks, made alone, equal the edges of the complete chunks, row for row.

For every selected chunk and director it makes the edge boxes alone, in a fresh state, and compares them with the rows
that the complete chunk has in these boxes. Writes ``check_edges.txt``. Fails with the chunks that differ.
"""

from collections.abc import Iterable

import numpy as np

from generate_tile import make_maker
from skymill.boxes import edge_boxes
from skymill.columns import Rows, Strings
from skymill.config import Dataset, Table
from skymill.errors import SkymillError
from skymill.files import write_text
from skymill.rowmaker import RowMaker
from skymill.step import log, start_step


def same_rows(one: Rows, other: Rows, table: Table) -> bool:
    """Whether two blocks hold the same rows, bit for bit."""
    if (one.box, one.first, one.count) != (other.box, other.first, other.count):
        return False
    for column in table.columns:
        a, b = one.columns[column.name], other.columns[column.name]
        if isinstance(a, Strings):
            equal = a.values == b.values and np.array_equal(a.codes, b.codes)
        else:
            equal = np.array_equal(np.ma.getmaskarray(a), np.ma.getmaskarray(b)) and np.array_equal(
                np.ma.getdata(a).view(np.uint8), np.ma.getdata(b).view(np.uint8)
            )
        if not equal:
            return False
    return True


def check_chunks(dataset: Dataset, makers: tuple[RowMaker, RowMaker], chunks: Iterable[int]) -> tuple[list[int], int]:
    """Compare edges that are made alone with those of complete chunks.

    Parameters
    ----------
    dataset : `Dataset`
    makers : `tuple` of `RowMaker`
        Two of them, which share nothing.
    chunks : iterable of `int`

    Returns
    -------
    different : `list` [`int`]
        Chunks that differ.
    rows : `int`
        Rows that were compared.
    """
    different, rows = [], 0
    for chunk in chunks:
        numbers = sorted(edge_boxes(dataset.chunker, chunk))
        for table in dataset.tables_of("director"):
            complete = [block for block in makers[0].director_blocks(table, chunk) if block.box in numbers]
            alone = list(makers[1].director_blocks(table, chunk, numbers))
            rows += sum(block.count for block in alone)
            if len(alone) != len(complete) or not all(map(same_rows, alone, complete, [table] * len(alone))):
                different.append(chunk)
    return different, rows


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``check_edges``."""
    dataset = start_step(snakemake)
    results = dataset.results
    path = results / "check_edges.txt"
    path.unlink(missing_ok=True)  # that of another selection
    makers = tuple(make_maker(dataset, results / "visits", results / "density") for _ in range(2))
    chunks = dataset.selection().chunks.tolist()
    different, rows = check_chunks(dataset, makers, chunks)
    if different:
        raise SkymillError(
            f"the edges of {len(different)} chunks differ from the complete chunks: {different[:20]}; please report this"
        )
    text = f"The edges of {len(chunks)} chunks, {rows} rows, equal those of the complete chunks.\n"
    write_text(path, text)
    log.info(text.strip())


if "snakemake" in globals():
    main(globals()["snakemake"])
