"""How far a run is: one live line in a terminal, and a plain line now and then elsewhere.

A thread of Snakemake's own process looks at the records of the tiles that are to be done, wherever their jobs run, and
says what it sees. An error in it ends the reports and nothing else; it is kept in ``logs/progress.log``.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass
from typing import TextIO

from .files import read_json
from .plan import State
from .retries import home_tile
from .selection import expand_ranges

#: Seconds between reports, in a terminal and elsewhere; another number, or "off", can be set in the environment.
LIVE_S, PLAIN_S = 1.0, 30.0
SETTING = "SKYMILL_PROGRESS"
#: What the stages of a chunk cost, as parts of the whole.
COSTS = {"generated": 0.7, "partitioned": 0.1, "loaded": 0.2}
#: Rates are those of so many seconds before.
WINDOW_S = 300.0
#: A line that somebody else writes stands alone for so long.
PAUSE_S = 0.3
#: How Snakemake's messages begin that tell of no job and no error, and that ``--quiet progress`` leaves all the same.
ROUTINE = ("Select jobs to execute...", "Execute ", "Building DAG of jobs...", "Using shell: ", "Conda environments: ")


@dataclass(frozen=True)
class Sample:
    """What there is at a time.

    Attributes
    ----------
    time : `float`
        On a clock that never goes back [s].
    generated, partitioned, loaded : `int`
        Chunks that have come so far, or further.
    rows : `int`
        Rows of chunks that are loaded, or partitioned where nothing is loaded; overlaps included.
    failed : `int`
    """

    time: float
    generated: int
    partitioned: int
    loaded: int
    rows: int
    failed: int


class Progress:
    """Counts what is done of all transactions, looking only at those that are to be done.

    Parameters
    ----------
    state : `State`

    Attributes
    ----------
    before : `int`
        Chunks that are final already.
    total : `int`
        All chunks, those included.
    """

    def __init__(self, state: State):
        self.root = state.root
        self.loads = state.store != "none"
        self.tiles = {
            t.name: {tile: len(expand_ranges(ranges)) for tile, ranges in t.tiles.items()}
            for t in state.pending.values()
        }
        final = [t for t in state.transactions.values() if t.committed]
        self.before = sum(len(t.chunks()) for t in final)
        self.total = self.before + sum(sum(tiles.values()) for tiles in self.tiles.values())
        records = [read_json(self.root / "ingest" / "transactions" / f"{t.name}.committed.json") for t in final]
        regular = {table.name for table in state.dataset.tables_of("regular")}
        self._rows_before = sum(n for record in records for name, n in record["rows"].items() if name not in regular)
        self._begun = time.time()
        #: Chunks and rows by manifest or sentinel; what was read once does not change.
        self._known: dict[tuple[str, str], tuple[int, int]] = {}
        self._made: set[tuple[str, str, str]] = set()

    def sample(self) -> Sample:
        """Look at the records."""
        counts = dict.fromkeys(COSTS, self.before)
        rows, failed = self._rows_before, 0
        for name, tiles in self.tiles.items():
            generated, partitioned, loaded = (
                self._names(stage, name) for stage in ("generated", "partitioned", "ingest")
            )
            failed += sum(len(self._names("failures", name, tile)) for tile in self._names("failures", name))
            seen: set[str] = set()
            for tile, size in tiles.items():
                done, new_rows = self._loaded(name, tile, size, loaded, seen)
                cut = max(done, size if self._is_made("partitioned", name, tile, partitioned) else 0)
                made = max(cut, size if self._is_made("generated", name, tile, generated) else 0)
                if made < size and tile in generated:
                    made = max(made, len(self._chunks_in("generated", name, tile)) - 1)
                counts["loaded"] += done
                counts["partitioned"] += cut
                counts["generated"] += made
                rows += new_rows
                if not self.loads and cut == size:
                    rows += self._partitioned_rows(name, tile)
        return Sample(time.monotonic(), **counts, rows=rows, failed=failed)

    def _names(self, *parts: str) -> set[str]:
        try:
            return set(os.listdir(self.root.joinpath(*parts)))
        except OSError:
            return set()

    def _chunks_in(self, *parts: str) -> set[str]:
        """The chunks that have a file in a folder, the one that is being made included."""
        return {name.split("_")[1] for name in self._names(*parts) if name.startswith("chunk_")}

    def _is_made(self, stage: str, name: str, tile: str, names: set[str]) -> bool:
        """Whether a stage of a tile is done: its manifest is of this run, or its bulk files are still there."""
        if (stage, name, tile) in self._made:
            return True
        if f"{tile}.json" not in names:
            return False
        with contextlib.suppress(OSError):
            path = self.root / stage / name / f"{tile}.json"
            if tile in names or path.stat().st_mtime >= self._begun:
                self._made.add((stage, name, tile))
                return True
        return False

    def _loaded(self, name: str, tile: str, size: int, names: set[str], seen: set[str]) -> tuple[int, int]:
        """The chunks and rows of a tile that are loaded; each folder of sentinels is looked at once (``seen``)."""
        if f"{tile}.json" in names:
            return self._read(name, f"{tile}.json")
        home = home_tile(tile)
        if home not in names or home in seen:
            return 0, 0
        seen.add(home)
        sentinels = [n for n in self._names("ingest", name, home) if n.startswith("chunk_")]
        # Those of tiles with a manifest are counted with it.
        family = [t for t in self.tiles[name] if home_tile(t) == home and f"{t}.json" in names]
        others = sum(self._read(name, f"{t}.json")[0] for t in family)
        rows = sum(self._read(name, f"{home}/{sentinel}")[1] for sentinel in sentinels) if not others else 0
        return min(size, max(0, len(sentinels) - others)), rows

    def _read(self, name: str, path: str) -> tuple[int, int]:
        """The chunks and rows of a manifest or sentinel."""
        key = (name, path)
        if key not in self._known:
            try:
                content = read_json(self.root / "ingest" / name / path)
                self._known[key] = (content.get("chunks", 1), sum(content["rows"].values()))
            except Exception:  # an abort has just removed it
                return 0, 0
        return self._known[key]

    def _partitioned_rows(self, name: str, tile: str) -> int:
        key = (name, tile)
        if key not in self._known:
            chunks = read_json(self.root / "partitioned" / name / f"{tile}.json")["chunks"]
            self._known[key] = (0, sum(table["rows"] for entry in chunks.values() for table in entry.values()))
        return self._known[key][1]


class Line:
    """Says in a line what samples show.

    Parameters
    ----------
    progress : `Progress`
    """

    def __init__(self, progress: Progress):
        self.progress = progress
        self.samples: deque[Sample] = deque()

    def add(self, sample: Sample) -> None:
        """Add a sample; those that are too old are forgotten."""
        self.samples.append(sample)
        while len(self.samples) > 2 and self.samples[1].time < sample.time - WINDOW_S:
            self.samples.popleft()

    def text(self, is_end: bool = False) -> str:
        """What the last sample shows, the speed since the first, and the time left unless it is the end."""
        old, new, total = self.samples[0], self.samples[-1], self.progress.total
        last = "loaded" if self.progress.loads else "partitioned"
        done = getattr(new, last)
        parts = [f"{done:,} of {total:,} chunks {last} ({100 * done // max(total, 1)} %)"]
        if new.generated > done:
            parts[0] += f", {new.generated:,} generated"
        if new.rows:
            parts.append(f"{short(new.rows)} rows")
        elapsed = new.time - old.time
        if elapsed > 0 and getattr(new, last) > getattr(old, last):
            chunks = (done - getattr(old, last)) / elapsed
            speed = f"{chunks:.3g} chunks/s" if chunks >= 0.1 else f"{chunks * 60:.2g} chunks/min"
            parts.append(f"{short((new.rows - old.rows) / elapsed)} rows/s, {speed}")
        gained = self.fraction(new) - self.fraction(old)
        if gained > 0 and done < total and not is_end:
            parts.append(f"{duration(elapsed * (1 - self.fraction(new)) / gained)} left")
        if new.failed:
            parts.append(f"{new.failed:,} failed")
        return "; ".join(parts)

    def fraction(self, sample: Sample) -> float:
        """How much of the work of this run and the ones before it that were broken off is done."""
        costs = COSTS if self.progress.loads else {"generated": 0.9, "partitioned": 0.1}
        before, total = self.progress.before, self.progress.total
        return sum(cost * (getattr(sample, stage) - before) for stage, cost in costs.items()) / max(total - before, 1)


def short(number: float) -> str:
    """A number with three digits that count: 123, 12.3k, 4.56M."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """A time in words: 45 s, 12 min, 3 h 20 min, 4 d 2 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours, days = minutes // 60, minutes // 1440
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{days} d {hours % 24} h"


def leave_out_routine(settings: object) -> None:
    """With ``--quiet progress``, leave Snakemake's routine messages out of what it prints; its log file has them.

    Parameters
    ----------
    settings : `object`
        Snakemake's settings of its output.
    """
    from snakemake.logging import logger

    if any(str(what) == "progress" for what in getattr(settings, "quiet", None) or ()):
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(_is_no_routine)


def _is_no_routine(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or not str(record.msg).startswith(ROUTINE)


class Reporter:
    """Reports the progress of a run, from `start` to `stop`.

    Parameters
    ----------
    state : `State`
    settings : `object`
        Snakemake's settings of its output.
    """

    def __init__(self, state: State, settings: object):
        self.state, self.settings = state, settings
        leave_out_routine(settings)
        self._thread: threading.Thread | None = None
        self._end = threading.Event()
        self._screen: Screen | None = None

    def start(self) -> None:
        """Begin to report, if there is anything to do and somebody wants to know."""
        setting = os.environ.get(SETTING, "")
        quiet = any(str(what) == "all" for what in getattr(self.settings, "quiet", None) or ())
        if self.state.pending and setting != "off" and not quiet:
            self._thread = threading.Thread(target=self._run, args=(setting,), name="progress", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Say how it ended."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(10)

    def _run(self, setting: str) -> None:
        try:
            self._report(setting)
        except Exception:
            with contextlib.suppress(Exception):
                path = self.state.root / "logs" / "progress.log"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(traceback.format_exc())

    def _report(self, setting: str) -> None:
        from snakemake.logging import logger

        screen = find_screen(logger)
        interval = float(setting or (LIVE_S if screen else PLAIN_S))
        progress = Progress(self.state)
        line = Line(progress)
        first = progress.sample()
        line.add(first)
        took = time.monotonic() - first.time
        if screen:
            screen.show(f"skymill: {line.text()}")
        # Looking must not become the work: on a slow file system it is done less often.
        while not self._wait(max(interval, 20 * took), screen):
            start = time.monotonic()
            line.add(progress.sample())
            took = time.monotonic() - start
            if screen:
                screen.show(f"skymill: {line.text()}")
            else:
                logger.info(f"skymill: {line.text()}")  # Snakemake's formatter knows no arguments
        if screen:
            screen.close()
        last = progress.sample()
        if (last.generated, last.partitioned, last.loaded, last.failed) != (
            first.generated,
            first.partitioned,
            first.loaded,
            first.failed,
        ):
            line.samples = deque([first, last])
            again = f"; see {self.state.root / 'failures'}, and run again" if last.failed else ""
            logger.info(f"skymill: {line.text(is_end=True)}; took {duration(last.time - first.time)}{again}")

    def _wait(self, seconds: float, screen: Screen | None) -> bool:
        """Wait until it is time to look again; the line is shown again when others have written. Whether the run has ended."""
        deadline = time.monotonic() + seconds
        while screen and time.monotonic() + PAUSE_S < deadline:
            if self._end.wait(PAUSE_S):
                return True
            screen.show(screen.text)
        return self._end.wait(max(0.0, deadline - time.monotonic()))


class Screen:
    """The last line of a terminal, which moves on when others write.

    Parameters
    ----------
    handler : `logging.StreamHandler`
        What writes Snakemake's messages there.
    """

    def __init__(self, handler: logging.StreamHandler):
        self.handler = handler
        self.stream: TextIO = handler.stream
        self.text = ""
        self._shown = ""
        self._quiet_until = 0.0
        handler.addFilter(self._make_room)
        atexit.register(self.close)

    def show(self, text: str) -> None:
        """Show a line in place of the one before, unless others write just now."""
        self.text = text
        with self._writing():
            if self._shown == text or time.monotonic() < self._quiet_until:
                return
            width = os.get_terminal_size(self.stream.fileno()).columns
            # The cursor goes back to the beginning, so that what a job prints is not appended.
            self.stream.write(f"\r\x1b[K{text[: width - 1]}\r")
            self.stream.flush()
            self._shown = text

    def close(self) -> None:
        """Remove the line."""
        with contextlib.suppress(Exception), self._writing():
            self._erase()

    def _make_room(self, record: logging.LogRecord) -> bool:
        with contextlib.suppress(Exception), self._writing():
            self._erase()
            self._quiet_until = time.monotonic() + PAUSE_S
        return True

    def _erase(self) -> None:
        if self._shown:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
            self._shown = ""

    @contextlib.contextmanager
    def _writing(self):  # noqa: ANN202 - an iterator of nothing
        self.handler.acquire()
        try:
            yield
        finally:
            self.handler.release()


def find_screen(logger: logging.Logger) -> Screen | None:
    """The terminal that Snakemake's messages go to; None if they go elsewhere."""
    for handler in logger.handlers if os.environ.get("TERM", "dumb") != "dumb" else ():
        stream = getattr(handler, "stream", None)
        if not isinstance(handler, logging.FileHandler) and stream is not None and stream.isatty():
            return Screen(handler)
    return None
