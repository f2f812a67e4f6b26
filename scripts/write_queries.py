"""Write a load test for the dataset: queries in SQL with the answers that are expected.

Reads the truth of all committed tiles, and generates a few chunks once more. Writes ``queries/queries.yaml``,
``queries/<Director>_ids.txt`` (ids of objects, one a line), and ``queries/<Table>_by_chunk.csv`` (rows of each chunk).
What the store holds has no part in it.
"""

from pathlib import Path

import yaml

from generate_tile import make_maker
from skymill import facts
from skymill.config import Dataset
from skymill.facts import Fact
from skymill.files import write_text
from skymill.selection import format_ranges
from skymill.step import log, start_step
from skymill.truth import TileTruth, add_up
from skymill.workload import choose_chunks, sample_chunk, write_classes


def add_truth(dataset: Dataset, paths: list[Path]) -> tuple[dict[str, dict[str, Fact]], dict[str, dict[int, int]]]:
    """The facts of each table over all tiles, and the rows of each table in each chunk."""
    total: dict[str, dict[str, Fact]] = {}
    rows: dict[str, dict[int, int]] = {}
    for path in paths:
        for name, chunks in TileTruth.read(path).tables.items():
            total[name] = add_up([total.get(name, {}), *chunks.values()])
            rows.setdefault(name, {}).update({chunk: known[facts.ROWS] for chunk, known in chunks.items()})
            # Where neighbours were not counted in one chunk, nothing is known of all.
            for kind in map(facts.pairs, _radii(dataset, name)):
                if any(kind not in known for known in chunks.values()):
                    total[name][kind] = None
    return total, rows


def _radii(dataset: Dataset, name: str) -> list[float]:
    table = dataset.tables.get(name)
    is_director = table is not None and table.kind == "director"
    return facts.table_facts(dataset, table).radii_deg if is_director else []


def write_queries(dataset: Dataset, results: Path, truth: list[Path], fingerprint: str) -> dict[str, str]:
    """The files of the load test, by name.

    Parameters
    ----------
    dataset : `Dataset`
    results : `pathlib.Path`
        ``results/<database>``.
    truth : `list` [`pathlib.Path`]
        The truth of all tiles that are loaded.
    fingerprint : `str`
    """
    total, rows = add_truth(dataset, truth)
    maker = make_maker(dataset, results / "visits", results / "density")
    files, classes = {}, []
    for director in dataset.tables_of("director"):
        if not director.ingest:
            continue
        held = rows[director.name]
        samples = [
            sample_chunk(maker, director, chunk, held[chunk]) for chunk in choose_chunks(dataset, director, held)
        ]
        files[f"{director.name}_ids.txt"] = "".join(f"{number}\n" for sample in samples for number in sample.ids)
        classes += write_classes(dataset, director, total, samples)
        for table in (director, *dataset.children_of(director.name)):
            lines = [f"{chunk},{count}\n" for chunk, count in sorted(rows[table.name].items()) if count]
            files[f"{table.name}_by_chunk.csv"] = "".join(["chunkId,rows\n", *lines])
    content = {
        "database": dataset.database,
        "fingerprint": fingerprint,
        "chunks": format_ranges(sorted({chunk for held in rows.values() for chunk in held})),
        "classes": classes,
    }
    files["queries.yaml"] = yaml.safe_dump(content, sort_keys=False, width=140, allow_unicode=True)
    return files


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``write_queries``."""
    dataset = start_step(snakemake)
    target = Path(snakemake.output[0])
    truth = sorted(map(Path, snakemake.input.truth))
    files = write_queries(dataset, dataset.results, truth, snakemake.params.fingerprint)
    # The list of queries comes last: what it names is there.
    for name, text in files.items():
        write_text(target.parent / name, text)
    log.info("wrote %s", ", ".join(files))


if "snakemake" in globals():
    main(globals()["snakemake"])
