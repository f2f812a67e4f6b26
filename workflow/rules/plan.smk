"""The plan: which chunk belongs to which transaction and tile, and what is derived from the configuration.

Makes ingest/plan_<wave>.json, if selected chunks are in no plan yet, and with it plan.json and plan.md (which the target `plan` makes
alone, at any time); configs/partitioner/<Table>.cfg and configs/ingest/*.json.
"""


rule plan:
    input:
        lambda wildcards: leave_lock(workflow),
    log:
        "<results>/logs/plan.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        **COMMON,
        transactions=len(STATE.transactions),
        jobs=jobs_at_once(workflow.resource_settings),
    message:
        "forecasting rows, bytes, disk and time of the selection"
    script:
        "../../scripts/plan_survey.py"


if STATE.new_wave is not None:

    rule plan_wave:
        output:
            f"<results>/ingest/plan_{STATE.new_wave['wave']}.json",
        log:
            f"<results>/logs/plan_wave/{STATE.new_wave['wave']}.log",
        priority: 100
        localrule: True
        conda:
            "../../environment.yml"
        params:
            **COMMON,
            wave=STATE.new_wave,
            jobs=jobs_at_once(workflow.resource_settings),
        message:
            f"planning {STATE.new_wave['chunks']} new chunks in {len(STATE.new_wave['transactions'])} transaction(s)"
        script:
            "../../scripts/plan_wave.py"


if missing(*(f"configs/{name}" for name in CONFIGS)):

    rule write_configs:
        output:
            expand("<results>/configs/{name}", name=CONFIGS),
        log:
            "<results>/logs/write_configs.log",
        # The database waits for them, and with it all loading.
        priority: 100
        localrule: True
        conda:
            "../../environment.yml"
        params:
            **COMMON,
        message:
            "deriving the configurations of other tools"
        script:
            "../../scripts/write_configs.py"
