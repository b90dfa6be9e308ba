# Runs every notebook of a profile, and none twice: papermill injects the parameters, nbconvert makes the page, the report gathers the records.
#   snakemake --cores 2 --config profile=smoke          (make reproduce does this)
import os, shutil, subprocess, sys
import yaml
from thesis_lib.workflow import read_profile

PROFILE = config.get("profile", "smoke")
ABOUT, JOBS = read_profile(PROFILE)
JOBS = {job.folder: job for job in JOBS}
RUN = "outputs/%s/{experiment}/{run}" % PROFILE
GPUS = len(subprocess.run(["nvidia-smi", "-L"], capture_output=True).stdout.splitlines()) if shutil.which("nvidia-smi") else 0
LIBRARY = [p for p in glob_wildcards("thesis_lib/{path,.+\\.py}").path if not p.endswith(("_modidx.py", "report.py", "workflow.py"))]
os.environ.update(THESIS_BATCH="1", CUBLAS_WORKSPACE_CONFIG=":4096:8", PYTHONHASHSEED="0")

def job(wildcards): return JOBS[f"{wildcards.experiment}/{wildcards.run}"]
def records(wildcards): return [f"outputs/{PROFILE}/{f}/record.json" for f, j in JOBS.items() if j.experiment in job(wildcards).after]

wildcard_constraints: experiment=r"[\w/]+", run=r"[\w.-]+"

rule index:
    input: records=expand(f"outputs/{PROFILE}/{{folder}}/record.json", folder=JOBS), pages=expand(f"outputs/{PROFILE}/{{folder}}/report.html", folder=JOBS),
           profile=f"profiles/{PROFILE}.yaml", library="thesis_lib/report.py"
    output: f"outputs/{PROFILE}/index.html"
    params: about=ABOUT
    shell: "{sys.executable} -m thesis_lib.report index outputs/{PROFILE} --about {params.about:q}"

rule experiment:
    input: notebook=lambda w: job(w).notebook, library=expand("thesis_lib/{path}", path=LIBRARY), records=records
    output: record=RUN + "/record.json"
    params: yaml=lambda w: yaml.safe_dump(job(w).params), notebook=RUN + "/report.ipynb", cwd=lambda w: os.path.dirname(job(w).notebook)
    log: RUN + "/run.log"
    threads: 1
    resources: gpu=lambda w: int(job(w).gpu and GPUS > 0)
    shell:
        "export OMP_NUM_THREADS={threads}; "
        "{sys.executable} -m papermill {input.notebook} {params.notebook} --cwd {params.cwd} -k python3 -y {params.yaml:q} --log-output --no-progress-bar > {log} 2>&1 || "
        "{{ echo \"{wildcards.experiment}/{wildcards.run}: $({sys.executable} -m thesis_lib.workflow {log})  [more in {log}]\" >&2; exit 1; }}"

rule page:
    input: record=RUN + "/record.json", library="thesis_lib/report.py"
    output: RUN + "/report.html"
    params: notebook=RUN + "/report.ipynb"
    shell: "{sys.executable} -m thesis_lib.report html {params.notebook} {output}"
