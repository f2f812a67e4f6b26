"""Verifies what was loaded: asks the store for facts of each chunk, and compares them with the truth of generation.

Reads generated/<txn>/<tile>.truth.json.gz and the store; makes verify/<run>.json, verify.json and verify.md. Committed transactions stay without
a rule that could make them: their wildcard here is another one.
"""

from skymill.verification import Verification

CHECKED = Verification(STATE, config, CONFIG_FOLDER)


rule verify_tile:
    input:
        truth=ancient("<results>/generated/{done}/{tile}.truth.json.gz"),
        committed=ancient("<results>/ingest/transactions/{done}.committed.json"),
    output:
        temp("<results>/verify/{run}/{done}/{tile}.json"),
    log:
        "<results>/logs/verify_tile/{run}/{done}/{tile}.log",
    wildcard_constraints:
        done=r"t\d+",
        run=r"\d+(-[0-9a-f]+)?",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=RESOURCES.runtime(f"verify_{STATE.store}"),
    params:
        **COMMON,
        chunks=lambda wildcards: CHECKED.only,
    message:
        "verifying tile {wildcards.tile} of {wildcards.done}"
    script:
        "../../scripts/verify_tile.py"


rule verify_rest:
    input:
        arrays=ancient(expand("<results>/visits/{name}.npz", name=LOADED_REGULAR)),
    output:
        temp("<results>/verify/{run}/rest.json"),
    log:
        "<results>/logs/verify_rest/{run}.log",
    wildcard_constraints:
        run=r"\d+(-[0-9a-f]+)?",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        **COMMON,
    message:
        "verifying the regular tables, and which chunks there are"
    script:
        "../../scripts/verify_rest.py"


rule merge_verification:
    input:
        rest="<results>/verify/{run}/rest.json",
        tiles=CHECKED.tiles,
    output:
        "<results>/verify/{run}.json",
    log:
        "<results>/logs/merge_verification/{run}.log",
    wildcard_constraints:
        run=r"\d+(-[0-9a-f]+)?",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        **COMMON,
        only=lambda wildcards: CHECKED.only,
    message:
        "putting together what was verified"
    script:
        "../../scripts/merge_verification.py"


rule verify:
    input:
        lambda wildcards: CHECKED.record,
    log:
        "<results>/logs/verify.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        **COMMON,
    message:
        "whether the store holds what was made"
    script:
        "../../scripts/verify_database.py"


rule repair:
    log:
        "<results>/logs/repair.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        **COMMON,
    message:
        "making the chunks again that verification has found to differ"
    script:
        "../../scripts/repair_chunks.py"
