"What several tests share."
import os, subprocess, sys
from pathlib import Path
import pytest
from thesis_lib.core import DataError

ROOT = Path(__file__).resolve().parents[1]

@pytest.fixture
def run():
    "Run a command in the project, without progress bars; returns the finished process."
    def call(*args, env=None, timeout=600, cwd=ROOT, **kwargs):
        return subprocess.run([str(a) for a in args], cwd=cwd, env={**os.environ, "THESIS_BATCH": "1", "OMP_NUM_THREADS": "1", **(env or {})},
                              capture_output=True, text=True, timeout=timeout, **kwargs)
    return call

@pytest.fixture
def python(run): return lambda *args, **kwargs: run(sys.executable, *args, **kwargs)

def says(call, *parts):
    "The call ends in a DataError of one sentence (one line) that contains every part."
    with pytest.raises(DataError) as caught: call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    for part in parts: assert part in message, message
