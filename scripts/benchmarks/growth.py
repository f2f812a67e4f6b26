"""How the cost grows from 10^5 to 10^7 rows: with more chunks, and with denser ones. Makes results/bench.png."""

from __future__ import annotations

import copy
import resource
import shutil
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

from . import FAKEDB, KPM50, PROJECT, RUNS, figure, timed

#: Rows that are asked for.
ROWS = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
#: Rows of a chunk that shows what a chunk costs by itself: some in each of its boxes.
FEWEST_ROWS = 20_000
#: How far the cost of a further row may be from the median over all sizes.
MAX_SPREAD = 0.15
PLOT = PROJECT / "results" / "bench.png"


def measure_growth(folder: Path) -> Iterator[tuple[str, dict]]:
    """Processor time of a further row, in one process, so that no start-up is in it: what more rows cost than the next smaller number.

    Where one chunk becomes denser, the smallest number has what a chunk costs whatever its rows: each column of each
    box has a stream of its own.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for name, make, fewest in (
        ("more chunks (fakedb, 10 times as dense)", _more_chunks(folder), 0),
        ("a denser chunk (kpm50)", _denser_chunk(folder), FEWEST_ROWS),
    ):
        make(ROWS[0])
        before = (0, 0.0, 0.0)
        if fewest:
            before = _median_of([make(fewest) for _ in range(3 * RUNS)])
            yield f"growth, {name}: {fewest:,} rows in all", figure(before[1], "CPU-s")
        found[name], own = [], []
        for wanted in ROWS:
            # Of a short run, what is not the row's is a larger part.
            runs = 3 * RUNS if wanted <= 1_000_000 else 3
            now = _median_of([make(wanted) for _ in range(runs)])
            cost = (now[1] - before[1]) / (now[0] - before[0]) * 1e9
            found[name].append((now[0], cost))
            own.append((now[2] - before[2]) / (now[0] - before[0]))
            yield f"growth, {name}: to {wanted:.0e} rows".replace("e+0", "e"), figure(cost, "ns per further row")
            before = now
        for what, costs in (("spread", [cost for _, cost in found[name]]), ("spread without the kernel's part", own)):
            middle = statistics.median(costs)
            spread = max(abs(cost / middle - 1) for cost in costs)
            yield f"growth, {name}: {what}", figure(100 * spread, "% from the median", at_most=100 * MAX_SPREAD)
    _plot(found)


#: Rows, processor time, and how much of it was our own and not the kernel's [s].
_Made = tuple[int, float, float]


def _median_of(runs: list[_Made]) -> _Made:
    """Rows, the median of the times, and the mean of what was our own: the kernel divides short times by chance."""
    rows, seconds, own = zip(*runs, strict=True)
    return rows[0], statistics.median(seconds), statistics.mean(own)


def _more_chunks(folder: Path) -> Callable[[int], _Made]:
    from skymill.schema import read_yaml

    config = read_yaml(FAKEDB)
    config["tables"]["Object"]["density"] = {"per_sq_deg": 10_000}
    make, rows_of_one = _tile_maker(config, FAKEDB.parent, folder), 0

    def run(wanted: int) -> _Made:
        nonlocal rows_of_one
        if not rows_of_one:
            rows_of_one = make([40000])[0]
        return make(list(range(40000, 40000 + max(1, round(wanted / rows_of_one)))))

    return run


def _denser_chunk(folder: Path) -> Callable[[int], _Made]:
    from skymill.schema import read_yaml

    config = read_yaml(KPM50)
    density = config["tables"]["Object"]["density"]["per_sq_deg"]
    rows_of_one = _tile_maker(_with_density(config, density / 50), KPM50.parent, folder)([115600])[0] * 50
    return lambda wanted: _tile_maker(_with_density(config, density * wanted / rows_of_one), KPM50.parent, folder)(
        [115600]
    )


def _with_density(config: dict, per_sq_deg: float) -> dict:
    changed = copy.deepcopy(config)
    changed["tables"]["Object"]["density"] = {"per_sq_deg": per_sq_deg}
    return changed


def _tile_maker(config: dict, config_folder: Path, folder: Path) -> Callable[[list[int]], _Made]:
    """What generates and partitions chunks, and says how many rows that made and what it took [s]."""
    from generate_tile import generate_tile
    from partition_tile import partition_chunk
    from skymill.config import Dataset
    from skymill.rowmaker import RowMaker, load_density
    from skymill.visits import Visits, make_regular_table

    dataset = Dataset.from_config(config, config_folder)
    director, table = dataset.tables["Object"], dataset.tables["CcdVisit"]
    visits = {"CcdVisit": Visits(make_regular_table(dataset, table), table)}
    generated, partitioned = folder / "generated", folder / "partitioned"

    def make(chunks: list[int]) -> _Made:
        shutil.rmtree(generated, ignore_errors=True)
        shutil.rmtree(partitioned, ignore_errors=True)
        for one in dataset.tables_of("director", "child"):
            (partitioned / one.name).mkdir(parents=True)
        maker = RowMaker(dataset, {"Object": load_density(director, dataset.folder)}, visits)
        made: dict = {}

        def work() -> None:
            made.update(generate_tile(dataset, maker, chunks, generated))
            for chunk in chunks:
                partition_chunk(dataset, chunk, made[str(chunk)], generated, partitioned)

        own = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        seconds = timed(work)
        own = resource.getrusage(resource.RUSAGE_SELF).ru_utime - own
        tables = [one.name for one in dataset.tables_of("director", "child")]
        return sum(entry[name]["rows"] for entry in made.values() for name in tables), seconds, own

    return make


def _plot(found: dict[str, list[tuple[int, float]]]) -> None:
    """Draw the cost of a row over the number of rows."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "skymill"
    picture, axes = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
    for name, points in found.items():
        rows, costs = zip(*points, strict=True)
        (line,) = axes.plot(rows, costs, "o-", label=name)
        middle = statistics.median(costs)
        axes.axhspan(middle * (1 - MAX_SPREAD), middle * (1 + MAX_SPREAD), color=line.get_color(), alpha=0.1, lw=0)
    axes.set(xscale="log", xlabel="rows", ylabel="processor time of a further row [ns]", ylim=(0, None))
    axes.set_title("Generate, write and partition; the bands are 15 % wide on each side")
    axes.grid(alpha=0.3)
    axes.legend()
    PLOT.parent.mkdir(exist_ok=True)
    picture.savefig(PLOT, dpi=120)
    pyplot.close(picture)
