"""Say whether the store holds what was made.

Reads the record of a verification. Fails if anything differs, with the tables, chunks and facts; the whole list is in
``verify.json`` and ``verify.md``.
"""

from skymill.errors import SkymillError, counted
from skymill.files import read_json
from skymill.step import log, start_step
from skymill.verification import bad_chunks, in_words

#: Differences that the message shows.
SHOWN = 12


def judge(record: dict, root: object) -> str:
    """What a verification has found, in words.

    Raises
    ------
    SkymillError
        If anything differs.
    """
    differences = record["differences"]
    if not differences:
        return f"{counted(record['compared'], 'fact')} of {counted(record['chunks'], 'chunk')} agree with the truth of generation"
    bad = {chunk for chunks in bad_chunks(differences).values() for chunk in chunks}
    lines = [f"  {in_words(part)}" for part in differences[:SHOWN]]
    if len(differences) > SHOWN:
        lines.append(f"  ... {len(differences) - SHOWN} more")
    listed = "\n".join(lines)
    raise SkymillError(
        f"the store does not hold what was made: {counted(len(differences), 'difference')} in {counted(len(bad), 'chunk')}\n{listed}\n"
        f"The whole list is in {root}/verify.md. `snakemake repair` makes these chunks again, and replaces them or says how to"
    )


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``verify``."""
    dataset = start_step(snakemake)
    text = judge(read_json(snakemake.input[0]), dataset.results)
    log.info(text)
    print(f"verify: {text}; see {dataset.results}/verify.md")


if "snakemake" in globals():
    main(globals()["snakemake"])
