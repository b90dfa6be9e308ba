"What is loaded, and where: tables and pages start without torch, and only locks need Linux or macOS."

NO_TORCH = """
import sys
from thesis_lib import core, metrics, plots, report, workflow
for room in (core, metrics, report, workflow):
    for name in room.__all__: getattr(room, name)
plots.set_style, plots.contact_sheet, plots.plot_intervals
print("torch" in sys.modules)
"""
ELSEWHERE = """
import sys
for name in ("fcntl", "resource", "termios"): sys.modules[name] = None
import importlib, pkgutil, thesis_lib
for module in pkgutil.walk_packages(thesis_lib.__path__, "thesis_lib."):
    if not module.name.endswith("__main__"): importlib.import_module(module.name)
from thesis_lib.core import DataError, locked
from thesis_lib.workflow import main
try:
    with locked(sys.argv[1]): pass
except DataError as e: print(e)
print(main(["lock", "--", "true"]))
"""


def test_tables_and_pages_start_without_torch(python):
    done = python("-c", NO_TORCH)
    assert done.stdout == "False\n", done.stderr[-2000:]


def test_only_locks_need_linux_or_macos(python, tmp_path):
    done = python("-c", ELSEWHERE, tmp_path/"a.lock", env={"THESIS_ROOT": str(tmp_path)}, cwd=tmp_path)
    said = "file locks: this system has none, expected Linux or macOS"
    assert done.stdout.splitlines() == [said, "1"], done.stderr[-2000:]
    assert done.stderr.strip().endswith(said)
