"""The documents say what is there: files, options, versions and examples."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import duckdb
import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import skymill
import write_docs
from generate_chunk import generate_by_hand
from skymill.config import Dataset, load_dataset
from skymill.derived import index_configs
from skymill.selection import group_tiles

PROJECT = Path(__file__).resolve().parents[1]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
#: Documents that were parts of README.md: all that is checked of it is checked of them.
QSERV = (PROJECT / "docs" / "qserv.md").read_text(encoding="utf-8")
OLD_TOOL = (PROJECT / "docs" / "old-tool.md").read_text(encoding="utf-8")
MANUAL = "\n".join((README, QSERV, OLD_TOOL))
DOCUMENTS = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md"), *PROJECT.glob("profiles/*.md")])
CONFIGS = sorted(PROJECT.glob("configs/*/config.yaml"))
#: What no file may speak of: hosts of package indexes, and places on the machine of whoever wrote it.
FORBIDDEN = ("pypi" + ".org", "files.python" + "hosted", "/".join(("", "work", "")), "shared" + "/design")


def code_blocks(language: str, text: str = MANUAL) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The lines of the manual's shell blocks, with continued lines joined and comments removed."""
    text = "\n".join(code_blocks("sh")).replace("\\\n", " ")
    return [re.sub(r"\s+#.*", "", line) for line in text.splitlines()]


def block_with(language: str, *words: str) -> str:
    """The one block of the manual that holds some words."""
    found = [block for block in code_blocks(language) if all(word in block for word in words)]
    assert len(found) == 1, f"{len(found)} blocks of {language} hold {words}"
    return found[0]


# -- what is generated, and versions -----------------------------------------------------------------------------------


def test_generated_documents_are_up_to_date(capsys):
    assert write_docs.main(["--check"]) == 0, capsys.readouterr().err


def test_check_names_the_file_that_is_not_up_to_date(tmp_path, capsys):
    for name in ("pyproject.toml", "requirements.lock", "environment.yml"):
        shutil.copy(PROJECT / name, tmp_path)
    (tmp_path / "docs").mkdir()
    shutil.copy(PROJECT / "docs" / "configuration.md", tmp_path / "docs")
    assert write_docs.main(["--check"], tmp_path) == 0
    lock = tmp_path / "requirements.lock"
    lock.write_text(re.sub(r"(?m)^duckdb==.*", "duckdb==1.4.0", lock.read_text()))
    assert write_docs.main(["--check"], tmp_path) == 1
    assert capsys.readouterr().err.startswith("environment.yml is not up to date")
    lock.write_text(re.sub(r"(?m)^duckdb==.*\n", "", lock.read_text()))
    assert write_docs.main(["--environment"], tmp_path) == 1
    assert "requirements.lock has no duckdb" in capsys.readouterr().err


@pytest.mark.parametrize(("lock", "extra"), [("requirements.lock", "dev"), ("requirements-felis.lock", "felis")])
def test_lock_pins_everything_and_satisfies_every_bound(lock, extra):
    lines = (PROJECT / lock).read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9.-]+==[^=\s]+", line)] == []
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"][extra]]
    for requirement in map(Requirement, asked):
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{lock} has no {requirement.name}"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: the lock has {version}"


def test_the_locks_agree():
    """What reads schema files is added to the rest and changes none of it."""
    both = [write_docs.read_lock(PROJECT / name) for name in ("requirements.lock", "requirements-felis.lock")]
    assert {
        name: (both[0][name], both[1][name]) for name in both[0].keys() & both[1] if both[0][name] != both[1][name]
    } == {}
    assert "lsst-felis" in both[1] and "lsst-felis" not in both[0]


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert project["version"] == skymill.__version__
    assert f"## [{project['version']}]" in (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")


# -- links and commands ------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), f"there is no {path}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{path} has no heading {anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_targets_of_make_exist(document):
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    text = document.read_text(encoding="utf-8")
    code = "\n".join([*code_blocks("sh", text), *re.findall(r"`([^`\n]+)`", text)])
    named = re.findall(r"^(?:\w+=\S+ )*make ([a-z-]+)", code, re.MULTILINE)
    assert [name for name in named if name not in targets] == []


def test_options_of_scripts_exist():
    used: dict[str, set[str]] = {}
    for command in commands():
        match = re.search(r"python (scripts/\w+\.py)(.*)", command)
        if match:
            used.setdefault(match[1], set()).update(re.findall(r"(?<=\s)(--?[a-z][\w.-]*)", match[2]))
    assert len(used) >= 3
    for script, options in used.items():
        done = subprocess.run([sys.executable, PROJECT / script, "--help"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        known = set(re.findall(r"(?<![\w.-])--?[a-z][\w.-]*", done.stdout))
        assert options <= known, f"{script} has no {options - known}"


def test_scripts_and_files_that_documents_name_exist():
    for document in DOCUMENTS:
        for name in re.findall(
            r"(?<![\w/.])(?:scripts|workflow|profiles|tests|docs)/[\w/.]*\.\w+", document.read_text()
        ):
            assert (PROJECT / name).exists(), f"{document.name} names {name}, which is not there"


def test_every_module_has_its_line_in_contributing():
    text = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    library = PROJECT / "scripts" / "skymill"
    modules = [str(path.relative_to(library)) for path in sorted(library.rglob("*.py")) if path.stem != "__init__"]
    assert [name for name in modules if f"`{name}`" not in text] == []


WRAPPED = [path for path in DOCUMENTS if path.name != "configuration.md"]  # which is generated


@pytest.mark.parametrize("document", WRAPPED, ids=lambda path: str(path.relative_to(PROJECT)))
def test_prose_is_wrapped(document):
    """Tables and code may be longer."""
    prose = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert [line for line in prose.splitlines() if len(line) > 120 and not line.startswith("|")] == []


def test_rules_that_the_readme_asks_for_exist():
    rules = {
        name
        for path in PROJECT.glob("workflow/rules/*.smk")
        for name in re.findall(r"^\s*rule (\w+):", path.read_text(), re.M)
    }
    asked = {
        match[1] for command in commands() if (match := re.match(r"snakemake (?:--directory \S+ )?([a-z]\w*)", command))
    }
    assert asked >= {"load", "check_edges", "check_ingest"}
    assert asked <= rules


# -- examples ----------------------------------------------------------------------------------------------------------


def need_schema_reader(path):
    """Skip a test of a configuration whose schema file cannot be read here; in continuous integration it fails."""
    if "felis:" in path.read_text() and not os.environ.get("CI"):
        pytest.importorskip("felis", reason="the package lsst-felis is not installed: make felis")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_every_configuration_loads(path):
    need_schema_reader(path)
    dataset = load_dataset(path)
    assert dataset.database == path.parent.name
    assert len(dataset.selection().chunks) > 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_every_configuration_is_planned(path, tmp_path):
    """A dry run of each, of the whole selection; 146,332 chunks of kpm50 included, which may take 400 MB."""
    need_schema_reader(path)
    command = [sys.executable, "-m", "snakemake", "--snakefile", PROJECT / "workflow" / "Snakefile", "--dry-run"]
    command += ["--configfile", path, "--directory", tmp_path, "--quiet", "rules"]
    # Started by a small process: the memory of one that is forked counts until the program begins.
    measured = [sys.executable, "-c", MEASURE, *command]
    done = subprocess.run(measured, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    tiles = len(group_tiles(*tiles_of(load_dataset(path))))
    assert re.search(rf"^generate_tile +{tiles}$", done.stdout, re.MULTILINE), done.stdout[-2000:]
    assert int(done.stdout.split()[-1]) < 400_000


#: Runs a command, and prints its peak memory [kB].
MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


def tiles_of(dataset):
    """What `group_tiles` needs to know of a dataset."""
    return dataset.chunker, dataset.selection().chunks, dataset.config["chunks_per_tile"]


def test_the_dataset_of_the_readme_works(tmp_path, monkeypatch):
    folder = tmp_path / "configs" / "mysurvey"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(block_with("yaml", "database: mysurvey"))
    (folder / "colours.py").write_text(block_with("python", "class Redder"))
    monkeypatch.chdir(tmp_path)
    exec(compile(block_with("python", "density.npy"), "README.md", "exec"), {})
    dataset = load_dataset(folder / "config.yaml")
    assert len(dataset.selection().chunks) > 10
    files = {file.path.name: file.rows for file in generate_by_hand(dataset, 7140, tmp_path / "out", objects=300)}
    assert files["Visit.csv"] == 200
    assert files["chunk_7140_Star.csv"] > 200
    assert files["chunk_7140_Detection.csv"] > files["chunk_7140_Star.csv"]
    rows = [line.split("\t") for line in (tmp_path / "out" / "chunk_7140_Star.csv").read_text().splitlines()]
    names = [column.name for column in dataset.tables["Star"].columns]
    g, r = (np.array([row[names.index(name)] for row in rows], dtype=float) for name in ("gMag", "rMag"))
    assert 0.5 < (g - r).mean() < 0.7


def test_the_key_ingest_of_the_readme_fits_its_dataset(tmp_path):
    config = yaml.safe_load(block_with("yaml", "database: mysurvey"))
    (tmp_path / "visits.csv").write_text("1,g,0,0\n")
    (tmp_path / "colours.py").write_text(block_with("python", "class Redder"))
    config["tables"]["Star"]["density"] = {"per_sq_deg": 1}
    dataset = Dataset.from_config(config | yaml.safe_load(block_with("yaml", "store: qserv", "auth_key")), tmp_path)
    assert [(index["table"], index["index"]) for index in index_configs(dataset)] == [("Star", "by_starId")]


def test_the_smaller_dataset_of_the_readme_works(tmp_path):
    (tmp_path / "configs").mkdir()
    shutil.copytree(PROJECT / "configs" / "fakedb", tmp_path / "configs" / "fakedb")
    lines = block_with("sh", "> configs/small/config.yaml").partition("\nsnakemake")[0]
    subprocess.run(["bash", "-eu", "-c", lines], cwd=tmp_path, check=True)
    dataset = load_dataset(tmp_path / "configs" / "small" / "config.yaml")
    assert (dataset.database, dataset.tables["CcdVisit"].rows) == ("small", 5000)
    assert dataset.tables["Object"].density["per_sq_deg"] == 100


def test_the_columns_and_the_choice_of_the_readme_are_right(tmp_path):
    columns = yaml.safe_load(block_with("yaml", "for: {band:"))["columns"]
    config = yaml.safe_load(block_with("yaml", "database: mysurvey"))
    config["tables"]["Star"]["columns"] = [*config["tables"]["Star"]["columns"][:3], *columns]
    config["tables"]["Star"]["density"] = {"per_sq_deg": 1}
    config["tables"]["Visit"] |= {"from_file": "visits.csv"}
    config["tables"]["Detection"]["rows"] = yaml.safe_load(block_with("yaml", "select:"))["rows"]
    config["tables"]["Detection"]["columns"] = config["tables"]["Detection"]["columns"][:2]
    (tmp_path / "visits.csv").write_text("1,g,0,0\n")
    dataset = Dataset.from_config(config, tmp_path)
    names = [column.name for column in dataset.tables["Star"].columns]
    assert names[5:9] == ["uFlux", "uFluxErr", "gFlux", "gFluxErr"] and names[-2:] == ["yRadius", "yRadiusErr"]
    assert dataset.tables["Detection"].select.limit == 22.5


def test_queries_of_the_readme_run():
    dataset = load_dataset(PROJECT / "configs" / "fakedb" / "config.yaml")
    queries = (
        code_blocks("sql") + re.findall(r'database\.sql\("(.*?)"\)', MANUAL) + re.findall(r'\.duckdb "(.*?)"', MANUAL)
    )
    assert len(queries) >= 4
    with duckdb.connect() as database:
        for table in dataset.tables.values():
            columns = ", ".join(f'"{column.name}" {column.type.duckdb}' for column in table.stored_columns)
            database.execute(f"CREATE TABLE {table.name} ({columns})")
            if table.kind == "director":
                database.execute(f"CREATE TABLE {table.overlap_name} ({columns})")
        for query in queries:
            database.execute(query).fetchall()


def test_the_partitioner_of_the_readme_runs(tmp_path):
    block = block_with("sh", "partition_csv.py", "stars.csv").replace("/tmp/try", str(tmp_path))
    block = block.replace("python scripts/", f"{sys.executable} {PROJECT}/scripts/")
    done = subprocess.run(["bash", "-eu", "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "stars" / "chunk_38411.txt").read_text().startswith("1\t10.5\t-3.2\t17.1\t38411\t")
    assert (tmp_path / "fluxes" / "chunk_38411.txt").read_text().startswith("1\t6\t2.5\t38411\t")


# -- what must not be said ---------------------------------------------------------------------------------------------


def test_no_file_speaks_of_the_machine_it_was_written_on():
    if not (PROJECT / ".git").exists():
        pytest.skip("no git checkout: which files belong to the project is not known")
    done = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, check=True)
    found = []
    for path in map(PROJECT.joinpath, filter(None, done.stdout.decode().split("\0"))):
        content = path.read_bytes() if path.is_file() else b""
        found += [f"{os.path.relpath(path, PROJECT)}: {word}" for word in FORBIDDEN if word.encode() in content]
    assert found == []
