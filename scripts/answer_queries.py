"""Run the load test on the embedded store once, and compare the answers with those expected.

Reads ``queries/queries.yaml`` and the files beside it. Writes ``queries/answers.json``: class, parameters, seconds,
whether the answer was right. Fails if one was not, with the query, the answer expected and the one found.
"""

import csv
import time
from pathlib import Path

import yaml

from skymill.config import Dataset
from skymill.errors import SkymillError
from skymill.files import write_json
from skymill.step import log, start_step
from skymill.stores.embedded import open_database
from skymill.workload import is_expected

#: Ids of the file that are asked for, beside the cases.
IDS = 20
SHOWN = 5


def read_files(folder: Path) -> dict[str, list[list[int]]]:
    """The expected rows that stand in files of their own."""
    found = {}
    for path in folder.glob("*.csv"):
        with open(path, encoding="ascii", newline="") as file:
            found[path.name] = [[int(value) for value in row] for row in list(csv.reader(file))[1:]]
    return found


def answer(dataset: Dataset, database: Path, folder: Path) -> list[dict]:
    """Run all cases of all classes.

    Returns
    -------
    answers : `list` [`dict`]
        Class, parameters, seconds, and whether it was right; if not, also the query, what was expected and what was
        found.
    """
    content = yaml.load((folder / "queries.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
    by_file = read_files(folder)
    answers = []
    with open_database(database) as connection:
        for one in content["classes"]:
            cases = list(one["cases"])
            for name, source in one.get("parameters", {}).items():
                ids = (folder / source["file"]).read_text(encoding="ascii").split()
                cases += [
                    {"parameters": {name: number}, "expected": {"count": one["expected_rows"]}}
                    for number in ids[:: max(1, len(ids) // IDS)]
                ]
            for case in cases:
                query = one["sql"]["duckdb"].format(**case["parameters"])
                start = time.monotonic()
                rows = connection.execute(query).fetchall()
                expected = case["expected"]
                right = len(rows) == expected["count"] if "count" in expected else is_expected(expected, rows, by_file)
                done = {"class": one["name"], "parameters": case["parameters"], "right": right}
                done["seconds"] = round(time.monotonic() - start, 4)
                answers.append(done if right else {**done, "query": query, "expected": expected, "found": rows[:100]})
    return answers


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``answers``."""
    dataset = start_step(snakemake)
    folder = Path(snakemake.input[0]).parent
    if dataset.config["ingest"]["store"] != "embedded":
        raise SkymillError(
            f"ingest.store is {dataset.config['ingest']['store']}: answers are compared in the embedded store only; for Qserv, run the "
            f"queries of {folder}/queries.yaml (sql: qserv) with a load tester"
        )
    answers = answer(dataset, dataset.results / f"{dataset.database}.duckdb", folder)
    write_json(folder / "answers.json", answers)
    wrong = [one for one in answers if not one["right"]]
    if wrong:
        lines = [
            f"  {one['class']}: {one['query']}\n    expected {one['expected']}, found {one['found'][:3]}"
            for one in wrong
        ]
        listed = "\n".join(lines[:SHOWN])
        raise SkymillError(
            f"{len(wrong)} of {len(answers)} queries were not answered as expected:\n{listed}\n"
            f"All are in {folder}/answers.json; `snakemake verify` says which chunks differ"
        )
    text = f"{len(answers)} queries of {len({one['class'] for one in answers})} classes were answered as expected"
    log.info(text)
    print(f"answers: {text}, in {sum(one['seconds'] for one in answers):.1f} s; see {folder}")


if "snakemake" in globals():
    main(globals()["snakemake"])
