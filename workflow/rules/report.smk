"""The report: sky.html, a page of sky maps and figures, and report.html, Snakemake's own report of rules and run times.

Reads all records of the dataset; makes report/sky.html and report/report.html, anew each time.
"""

from skymill.history import flag_products

#: What Snakemake's report shows; captions lie below the Snakefile.
PRODUCTS = flag_products(Path(RESULTS), "report") if STATE.is_report else []


rule write_sky_page:
    input:
        lambda wildcards: leave_lock(workflow),
    log:
        "<results>/logs/write_sky_page.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        **COMMON,
        templates=f"{workflow.basedir}/report",
    message:
        "writing the page of sky maps"
    script:
        "../../scripts/write_sky_page.py"


rule report:
    input:
        lambda wildcards: leave_lock(workflow),
    log:
        "<results>/logs/report.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        **COMMON,
        templates=f"{workflow.basedir}/report",
        snakefile=workflow.main_snakefile,
        configfiles=[str(Path(path).resolve()) for path in workflow.configfiles],
        config_args=workflow.config_settings.config_args,
    message:
        "writing the report"
    script:
        "../../scripts/write_report.py"
