"""Writes a load test for the dataset, queries with expected answers, and runs it on the embedded store.

Reads the truth of all tiles that are loaded; makes queries/queries.yaml and the files that it names.
"""


rule write_queries:
    input:
        truth=lambda wildcards: CHECKED.truth,
        maps=ancient(expand("<results>/density/{name}.npy", name=MAPS)),
    output:
        "<results>/queries/queries.yaml",
    log:
        "<results>/logs/write_queries.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        **COMMON,
    message:
        "writing queries with expected answers"
    script:
        "../../scripts/write_queries.py"


rule answers:
    input:
        "<results>/queries/queries.yaml",
    log:
        "<results>/logs/answers.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        **COMMON,
    message:
        "comparing answers with those expected"
    script:
        "../../scripts/answer_queries.py"
