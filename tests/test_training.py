"Training survives a kill, a full disk and several processes."
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

TOY = Path(__file__).parent/"toy_training.py"

def outcome(process):
    assert process.returncode == 0, process.stderr[-2000:]
    world, starts, now, checkpoint = process.stdout.split("RESULT ")[1].split()
    return dict(world=int(world), starts=int(starts), now=now == "True", checkpoint=checkpoint)

def test_killed_run_ends_with_the_same_weights(python, tmp_path):
    undisturbed = outcome(python(TOY, tmp_path/"a", 30))
    command = [sys.executable, str(TOY), str(tmp_path/"b"), "30"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not (tmp_path/"b"/"last.ckpt").exists() and time.time() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path/"b"/"finished.json").exists(), "the run ended before it could be killed"
    resumed = outcome(python(TOY, tmp_path/"b", 30))
    assert resumed == {**undisturbed, "starts": 2}

def test_finished_run_is_found_and_a_changed_one_starts_anew(python, tmp_path):
    first, again, longer = (outcome(python(TOY, tmp_path, n)) for n in (3, 3, 4))
    assert (again["now"], again["checkpoint"]) == (False, first["checkpoint"])
    assert longer["now"] and longer["starts"] == 1 and longer["checkpoint"] != first["checkpoint"]

def test_full_disk_is_one_sentence_and_the_run_resumes(python, tmp_path):
    def small_files(): # none may grow beyond 4 KiB: every checkpoint write fails
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    failed = python(TOY, tmp_path/"a", 3, preexec_fn=small_files)
    assert failed.returncode != 0
    assert "DataError" in failed.stderr
    assert "could not be written" in failed.stderr
    assert str(tmp_path / "a") in failed.stderr
    assert outcome(python(TOY, tmp_path/"a", 3))["checkpoint"] == outcome(python(TOY, tmp_path/"b", 3))["checkpoint"]

def test_two_processes_train_one_run(run, python, tmp_path):
    done = run(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--standalone", TOY, tmp_path, 3)
    together = outcome(done)
    assert done.stdout.count("RESULT") == 1 and together["world"] == 2
    found = outcome(python(TOY, tmp_path, 3))
    assert found == {**together, "now": False}
    assert json.loads((tmp_path/"finished.json").read_text())["world_size"] == 2
