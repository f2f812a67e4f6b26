"""Measure what truth costs: taking the facts of rows, compared with writing the same rows as text.

    python scripts/measure_truth.py

A row of `make bench`, too. Times are of the processor, medians of several runs.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from generate_tile import stored_values
from skymill.config import Dataset, load_dataset
from skymill.rowmaker import BoxStreams, RowMaker, load_density
from skymill.textfile import TableFile
from skymill.truth import TileTruth, TruthTaker
from skymill.visits import Visits, make_regular_table

#: The most that truth may cost, as a part of writing the rows.
TARGET = 0.3


def make_rows(dataset: Dataset, chunks: list[int]) -> dict[int, list[tuple]]:
    """All rows of chunks as generation makes them: for each chunk the kind, the table and the block, in order."""
    director, visits = dataset.tables["Object"], dataset.tables["CcdVisit"]
    maker = RowMaker(
        dataset,
        {"Object": load_density(director, dataset.folder)},
        {"CcdVisit": Visits(make_regular_table(dataset, visits), visits)},
    )
    made: dict[int, list[tuple]] = {}
    for chunk in chunks:
        events = made[chunk] = []
        streams: dict[tuple[str, int], BoxStreams] = {}
        for rows in maker.director_blocks(director, chunk):
            events.append(("home", director, rows, None))
            for child in dataset.children_of("Object"):
                key = (child.name, rows.box)
                box = streams.setdefault(key, BoxStreams(dataset.seed, child, chunk, rows.box))
                events += [("child", child, part, None) for part in maker.child_blocks(child, rows, box)]
        events += [("halo", director, rows, reaching) for rows, reaching in maker.halo_blocks(director, chunk)]
    return made


def write_rows(made: dict[int, list[tuple]], folder: Path) -> None:
    """Write the rows as text, as generation does."""
    folder.mkdir()
    for chunk, events in made.items():
        files: dict[tuple[str, str], TableFile] = {}
        for kind, table, rows, reaching in events:
            key = (table.name, kind)
            if key not in files:
                path = folder / f"{chunk}_{table.name}_{kind}.csv"
                files[key] = TableFile(path, table.stored_columns, row_ends=kind != "child")
            values = stored_values(rows, rows.chunk)
            files[key].add(values if reaching is None else {n: part[reaching] for n, part in values.items()})
        for file in files.values():
            with file:
                pass
    shutil.rmtree(folder)


def take_truth(dataset: Dataset, made: dict[int, list[tuple]], folder: Path) -> None:
    """Take the facts of the rows, and write them, as generation does."""
    taker, tile = TruthTaker(dataset), TileTruth()
    for chunk, events in made.items():
        truth = taker.chunk(dataset.tables["Object"], chunk)
        for kind, table, rows, reaching in events:
            if kind == "home":
                truth.add_director(rows)
            elif kind == "child":
                truth.add_child(table, rows)
            else:
                truth.add_halo(rows, reaching)
        tile.add(chunk, truth.facts(), {})
    tile.write(folder / "truth.json.gz", {})


def measure_truth(datasets: dict[str, tuple[Dataset, list[int]]], median_cpu: Callable) -> dict[str, dict]:
    """The cost of truth for some datasets, in the form of `make bench`.

    Parameters
    ----------
    datasets : `dict` [`str`, `tuple` [`Dataset`, `list` [`int`]]]
        What they are called, and the chunks to take.
    median_cpu : callable
        Measures an action [s].
    """
    results = {}
    for name, (dataset, chunks) in datasets.items():
        made = make_rows(dataset, chunks)
        with tempfile.TemporaryDirectory(prefix="skymill-truth-") as folder:
            writing = median_cpu(lambda made=made, folder=folder: write_rows(made, Path(folder) / "rows"))
            taking = median_cpu(
                lambda dataset=dataset, made=made, folder=folder: take_truth(dataset, made, Path(folder))
            )
        ratio = taking / writing
        results[f"truth of {name}"] = {
            "value": round(ratio, 2), "unit": "of the CPU-s to write the rows", "target": f"<= {TARGET}", "ok": ratio <= TARGET,
        }  # fmt: skip
    return results


def usual_datasets() -> dict[str, tuple[Dataset, list[int]]]:
    """What is measured: fakedb, and a table of 330 columns."""
    from measure_speed import FAKEDB, wide_dataset

    wide = Dataset.from_config(wide_dataset(), FAKEDB.parent)
    return {"fakedb": (load_dataset(FAKEDB), list(range(40000, 40020))), "330 columns": (wide, [40000])}


def main() -> int:
    """Measure, and print a table; the exit code says whether the target is met."""
    from measure_speed import median_cpu
    from summarize_run import format_table

    results = measure_truth(usual_datasets(), median_cpu)
    lines = [[k, f"{r['value']:g}", r["unit"], r["target"], "yes" if r["ok"] else "NO"] for k, r in results.items()]
    print(format_table(["what", "value", "unit", "target", "ok"], lines))
    return 0 if all(r["ok"] for r in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
