"""Write sky.html: sky maps, figures and failures of a dataset, as one page that needs no server and no network.

Reads all records of the dataset (see `skymill.run_records`), and the verification if there is one; fills the template
``workflow/report/sky.html``. What the page shows chunk by chunk is packed: arrays of numbers, deflated, as base64.
"""

import base64
import datetime
import importlib.metadata
import json
import os
import platform
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import yaml

import skymill
from skymill.files import read_json, write_text
from skymill.run_records import DONE, STAGES, STATES, Job, RunRecords, read_records
from skymill.selection import format_ranges
from skymill.step import log, start_step
from skymill.verification import bad_chunks, in_words

#: Packages whose versions the page tells.
PACKAGES = ("snakemake", "numpy", "polars", "pyarrow", "duckdb", "healpy")
#: Failures, and facts that differ, that the page lists; how many there are it always says.
MOST_FAILURES = 500


def pack(values: Iterable[float]) -> dict:
    """Numbers as text: the smallest type that holds them, little-endian, deflated, base64.

    Returns
    -------
    packed : `dict`
        ``type`` (i1, i2, i4 or f8) and ``data``. Integers above 2^31 become f8, which is exact up to 2^53.
    """
    values = np.asarray(values)
    kind = "f8"
    if values.dtype.kind in "iu":
        low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
        kind = next((k for k in ("i1", "i2", "i4") if np.iinfo(k).min <= low and high <= np.iinfo(k).max), "f8")
    data = zlib.compress(values.astype(f"<{kind}").tobytes(), 9)
    return {"type": kind, "data": base64.b64encode(data).decode("ascii")}


def summarize(jobs: Iterable[Job]) -> dict:
    """What some jobs did together; memory is the most that one of them held. None where no job was measured."""
    jobs = list(jobs)
    memory = [job.memory_mb for job in jobs if not np.isnan(job.memory_mb)]
    return {
        "jobs": len(jobs),
        "chunks": sum(job.chunks for job in jobs),
        "rows": sum(job.rows for job in jobs),
        "bytes": sum(job.bytes for job in jobs),
        "seconds": _total(job.seconds for job in jobs),
        "cpu_seconds": _total(job.cpu_seconds for job in jobs),
        "memory_mb": max(memory) if memory else None,
    }


def _total(seconds: Iterable[float]) -> float | None:
    """A sum without what was not measured, to the millisecond, as its parts; None if nothing was."""
    measured = [value for value in seconds if not np.isnan(value)]
    return round(sum(measured), 3) if measured else None


def group(jobs: Iterable[Job], *keys: str) -> dict[tuple, list[Job]]:
    """Jobs by the values of some attributes, in the order in which these are met."""
    groups = defaultdict(list)
    for job in jobs:
        groups[tuple(getattr(job, key) for key in keys)].append(job)
    return groups


def stage_entries(records: RunRecords) -> list[dict]:
    """Each stage with its tables: rows, bytes, time; then the steps that are no stage of a tile."""
    totals = records.totals()
    by_stage = group(records.jobs, "stage")
    entries = []
    for stage in STAGES:
        tables = [{"name": name, "rows": rows, "bytes": size} for name, (rows, size) in totals[stage].items()]
        entry = {**summarize(by_stage.pop((stage,), [])), "stage": "loaded" if stage == "ingest" else stage}
        # The sums of the tables: a chunk that was made twice counts once.
        entry |= {key: sum(table[key] for table in tables) for key in ("rows", "bytes")}
        entries.append({**entry, "tables": tables})
    entries += [{**summarize(jobs), "stage": stage, "tables": []} for (stage,), jobs in by_stage.items()]
    return [entry for entry in entries if entry["jobs"] or entry["rows"]]


def transaction_entries(records: RunRecords) -> list[dict]:
    """Each transaction: its state, and what its jobs did; rows and bytes are those of the last stage it has reached."""
    by_transaction = group(records.jobs, "transaction", "stage")
    entries = []
    for transaction in records.transactions():
        jobs = {stage: by_transaction.get((transaction["name"], stage), []) for stage in (*STAGES, "ingest_regular")}
        last = next((stage for stage in reversed(STAGES) if jobs[stage]), "generated")
        entry = summarize(job for found in jobs.values() for job in found)
        entry |= {key: sum(getattr(job, key) for job in jobs[last]) for key in ("rows", "bytes")}
        entry["rows"] += sum(job.rows for job in jobs["ingest_regular"])
        entries.append({**transaction, **entry, "chunks": transaction["chunks"]})
    return entries


def worker_entries(records: RunRecords) -> list[dict]:
    """What each machine did, stage by stage."""
    return [
        {**summarize(jobs), "host": host, "stage": "loaded" if stage == "ingest" else stage}
        for (host, stage), jobs in sorted(group(records.jobs, "host", "stage").items(), key=lambda item: item[0][0])
    ]


def store_entries(transactions: Iterable[dict]) -> list[dict]:
    """What each worker of the store has of the committed transactions; the embedded store has no workers."""
    totals: dict[str, dict] = {}
    for transaction in transactions:
        for worker, held in transaction["workers"].items():
            total = totals.setdefault(worker, {"worker": worker, "transactions": 0, "files": 0, "rows": 0, "bytes": 0})
            total["transactions"] += 1
            for key, count in held.items():
                total[key] += count
    return [totals[worker] for worker in sorted(totals)]


def failure_entries(records: RunRecords) -> list[dict]:
    """What failed and why."""
    return [
        {
            **{key: getattr(f, key) for key in ("step", "transaction", "tile", "time", "reason", "file")},
            "chunks": format_ranges(f.chunks),
        }
        for f in records.failures[:MOST_FAILURES]
    ]


def verification_entry(path: Path) -> dict | None:
    """What the last verification has found; differences as many as the page lists, in words."""
    if not path.exists():
        return None
    record = read_json(path)
    bad = bad_chunks(record["differences"])
    tables = [{"name": name, **rows, "chunks": len(bad.get(name, []))} for name, rows in record["tables"].items()]
    differences = [{"chunk": part["chunk"], "text": in_words(part)} for part in record["differences"]]
    return {
        **{key: record[key] for key in ("chunks", "compared")},
        "tables": tables,
        "differ": len(differences),
        "differences": differences[:MOST_FAILURES],
    }


def chunk_arrays(records: RunRecords) -> dict:
    """What the maps show, packed: by chunk in ascending order, and by job."""
    jobs = [job for job in records.jobs if job.stage in STAGES]
    stages = list(STAGES)
    transactions, hosts = (list(dict.fromkeys(getattr(job, key) for job in jobs)) for key in ("transaction", "host"))
    # Whole milliseconds, so that the page can add them up exactly.
    columns = {
        "stage": [stages.index(job.stage) for job in jobs],
        "transaction": [transactions.index(job.transaction) for job in jobs],
        "host": [hosts.index(job.host) for job in jobs],
        "chunks": [job.chunks for job in jobs],
        "ms": [-1 if np.isnan(job.seconds) else round(job.seconds * 1000) for job in jobs],
        "cpu_ms": [-1 if np.isnan(job.cpu_seconds) else round(job.cpu_seconds * 1000) for job in jobs],
        "ended": [datetime.datetime.fromisoformat(job.ended).timestamp() if job.ended else 0.0 for job in jobs],
    }
    return {
        "chunks": format_ranges(records.chunks),
        "states": pack(records.states.astype(np.int64)),
        "rows": {name: pack(values) for name, values in records.best(records.rows).items()},
        "bytes": {name: pack(values) for name, values in records.best(records.bytes).items()},
        "job_of": {stage: pack(values) for stage, values in records.job_of.items()},
        "jobs": {name: pack(np.array(values, dtype=None if values else np.int64)) for name, values in columns.items()},
        "tiles": [job.tile for job in jobs],
        "transactions": transactions,
        "hosts": hosts,
    }


def versions() -> dict[str, str]:
    """What the page was made with, and most likely the rows as well."""
    found = {"skymill": skymill.__version__, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "system": f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} CPUs"}


def page_data(records: RunRecords) -> dict:
    """Everything that the page shows."""
    root, dataset, state = records.root, records.dataset, records.state
    transactions = transaction_entries(records)
    counts = np.bincount(records.states, minlength=len(STATES)).tolist()
    published = root / "ingest" / "published.json"
    return {
        "database": dataset.database,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "store": state.store,
        "seed": dataset.seed,
        "fingerprint": state.fingerprint,
        "partitioning": {
            **dataset.config["partitioning"],
            "chunks_in_stripe": dataset.chunker.chunks_in_stripe.tolist(),
        },
        "directors": {t.name: t.overlap_name for t in dataset.tables_of("director")},
        "children": {t.name: {"director": t.director, "visits": t.visits} for t in dataset.tables_of("child")},
        "states": dict(zip(STATES, counts, strict=True)),
        "done": counts[DONE],
        "published": read_json(published) if published.exists() else None,
        "verified": verification_entry(root / "verify.json"),
        "arrays": chunk_arrays(records),
        "stages": stage_entries(records),
        "transactions": transactions,
        "workers": worker_entries(records),
        "store_workers": store_entries(transactions),
        "failures": failure_entries(records),
        "failed": len(records.failures),
        "config": yaml.safe_dump(dataset.config, sort_keys=False, allow_unicode=True, width=100),
        "files": state.identity["files"],
        "versions": versions(),
    }


def fill_template(folder: Path, data: dict) -> str:
    """The page: ``sky.html`` of a folder, with its style, its code and its data in place."""
    # Within a script element nothing may look like a tag.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {"database": data["database"], "data": text}

    def part(match: re.Match) -> str:
        name = match[1]
        return parts[name] if name in parts else (folder / name).read_text(encoding="utf-8")

    return re.sub(r"\{\{([\w.]+)\}\}", part, (folder / "sky.html").read_text(encoding="utf-8"))


def write_sky_page(records: RunRecords, templates: Path) -> Path:
    """Write ``report/sky.html``; returns its path."""
    path = records.root / "report" / "sky.html"
    write_text(path, fill_template(templates, page_data(records)))
    return path


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``write_sky_page``."""
    dataset = start_step(snakemake)
    path = write_sky_page(read_records(dataset.results, dataset), Path(snakemake.params.templates))
    log.info("wrote %s (%d bytes)", path, path.stat().st_size)
    print(f"wrote {path}")


if "snakemake" in globals():
    main(globals()["snakemake"])
