"""Check that the store can be used: reached, of a version that fits, with a key that it accepts, and the database in which state.

Prints a line for each question, and a verdict. Changes nothing. Fails if an answer is no.
"""

from skymill.errors import SkymillError
from skymill.step import start_step
from skymill.stores import open_store


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``check_ingest``."""
    dataset = start_step(snakemake)
    answers = open_store(dataset, dataset.results).check()
    for what, good, detail in answers:
        # Not to the log, too: that of a step that fails is printed.
        print(f"{'yes' if good else 'NO':>3}  {what}: {detail}")
    failed = [what for what, good, _ in answers if not good]
    if failed:
        raise SkymillError(
            f"the store {dataset.config['ingest']['store']} cannot be used: the answer was NO to: {'; '.join(failed)}; the lines above say why"
        )
    print("The store can be used.")


if "snakemake" in globals():
    main(globals()["snakemake"])
