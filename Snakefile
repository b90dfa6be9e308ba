# Runs every notebook of a profile, and none twice: papermill injects the parameters, nbconvert makes the page, the report gathers the records.
#   snakemake --cores 2 --config profile=smoke [processes=4]          (make reproduce does this)
# With several processes, the training runs are data-parallel: torchrun runs the notebook as a script first, the notebook then finds the finished run.
import os, shlex, shutil, subprocess, sys
import yaml
from thesis_lib.workflow import read_profile

PROFILE = config.get("profile", "smoke")
JOBS = {job.folder: job for job in read_profile(PROFILE)[1]}
RUN = "outputs/%s/{experiment}/{run}" % PROFILE
PROCESSES = int(config.get("processes", 1))
GPUS = len(subprocess.run(["nvidia-smi", "-L"], capture_output=True).stdout.splitlines()) if shutil.which("nvidia-smi") else 0
LIBRARY = [p for p in glob_wildcards("thesis_lib/{path,.+\\.py}").path if not p.endswith(("_modidx.py", "report.py", "workflow.py"))]
os.environ.update(THESIS_BATCH="1", OMP_WAIT_POLICY="PASSIVE", MALLOC_MMAP_THRESHOLD_="1073741824", MALLOC_TRIM_THRESHOLD_="4294967296", # glibc: keep freed memory, a third of a small training step is page faults
                  CUBLAS_WORKSPACE_CONFIG=":4096:8", PYTHONHASHSEED="0")

def job(wildcards): return JOBS[f"{wildcards.experiment}/{wildcards.run}"]
def records(wildcards): return [f"outputs/{PROFILE}/{f}/record.json" for f, j in JOBS.items() if j.experiment in job(wildcards).after]

def distributed(wildcards, output): # shell commands that train with torchrun, for jobs that want it
    if PROCESSES == 1 or not job(wildcards).gpu: return "true"
    folder, notebook = os.path.dirname(output.record), job(wildcards).notebook
    return (f"{sys.executable} -m papermill {notebook} {folder}/train.ipynb --prepare-only -y {shlex.quote(yaml.safe_dump(job(wildcards).params))} && "
            f"{sys.executable} -m nbconvert --to script {folder}/train.ipynb && "
            f"{sys.executable} -m torch.distributed.run --nproc-per-node {PROCESSES} --standalone {folder}/train.py")

wildcard_constraints: experiment=r"[\w/]+", run=r"[\w.-]+"

rule index:
    input: records=[f"outputs/{PROFILE}/{f}/record.json" for f in JOBS], profile=f"profiles/{PROFILE}.yaml", library="thesis_lib/report.py"
    output: f"outputs/{PROFILE}/index.html", pages=[f"outputs/{PROFILE}/{f}/report.html" for f in JOBS]
    params: notebooks=[f"outputs/{PROFILE}/{f}/report.ipynb" for f in JOBS]
    shell: "{sys.executable} -m thesis_lib.report html {params.notebooks:q} && {sys.executable} -m thesis_lib.report index outputs/{PROFILE}"

rule experiment:
    input: notebook=lambda w: job(w).notebook, library=expand("thesis_lib/{path}", path=LIBRARY), records=records
    output: record=RUN + "/record.json"
    params: yaml=lambda w: yaml.safe_dump(job(w).params), notebook=RUN + "/report.ipynb", cwd=lambda w: os.path.dirname(job(w).notebook), distributed=distributed
    log: RUN + "/run.log"
    threads: 1
    resources: gpu=lambda w: min(PROCESSES, GPUS) if job(w).gpu else 0
    shell:
        "export OMP_NUM_THREADS={threads}; "
        "( {params.distributed} && {sys.executable} -m papermill {input.notebook} {params.notebook} --cwd {params.cwd} -k python3 "
        "-y {params.yaml:q} --log-output --no-progress-bar ) > {log} 2>&1 || "
        "{{ echo \"{wildcards.experiment}/{wildcards.run}: $({sys.executable} -m thesis_lib.workflow {log})  [more in {log}]\" >&2; exit 1; }}"
