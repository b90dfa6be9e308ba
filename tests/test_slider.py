"""The slider of `hourglass/explore` in JupyterLab, in a real browser.

All cells run, the slider is moved, the picture changes.
"""
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import torch

from browser import needs_chromium
from conftest import ROOT
from thesis_lib import core
from thesis_lib.models import hourglass
from thesis_lib.workflow import notebook_parameters

pytestmark = needs_chromium
NOTEBOOKS = ROOT/"nbs"/"experiments"/"hourglass"
PICTURE = "[...document.querySelectorAll('.widget-interact .widget-output img')].map(i => i.src).join()"
COMPLAINT = ( # of a cell
    "[...document.querySelectorAll('[data-mime-type*=stderr], [data-mime-type*=error]')].map(e => e.innerText).join()"
)
SLIDER = "[...document.querySelectorAll('.widget-interact .noUi-handle')].at(-1)"

# the record and the weights of a network as it is before training, of the name that the notebook opens
def small_run(folder):
    params = notebook_parameters(NOTEBOOKS/"pose.ipynb")
    params |= dict(run=notebook_parameters(NOTEBOOKS/"explore.ipynb")["network"], predictor="untrained")
    params |= dict(autoencoder=True, features=8, code=8, n_train=16)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THESIS_OUTPUTS", str(folder))
        record = core.run_record("hourglass/pose", params)
    names = ("stacks", "skip", "autoencoder", "features", "blocks", "depth", "code", "code_depth")
    size = {name: params[name] for name in names}
    network = hourglass.StackedHourglass(image_size=(params["image_w"], params["image_h"]), **size)
    (record.path/"checkpoint").mkdir()
    torch.save(network.state_dict(), record.path/"checkpoint"/"weights.pt")
    record.save()

@pytest.fixture
def lab(tmp_path): # address of a JupyterLab that opens a copy of the notebook
    small_run(tmp_path/"outputs")
    shutil.copy(NOTEBOOKS/"explore.ipynb", tmp_path)
    settings = tmp_path/"settings"/"@jupyterlab"/"notebook-extension"
    settings.mkdir(parents=True)
    whole = json.dumps(dict(windowingMode="none")) # cells out of sight stay in the page
    (settings/"tracker.jupyterlab-settings").write_text(whole)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port, token = s.getsockname()[1], secrets.token_hex(16)
    env = dict(
        THESIS_ROOT=str(ROOT), THESIS_OUTPUTS=str(tmp_path/"outputs"), THESIS_BATCH="0", OMP_NUM_THREADS="1",
        JUPYTERLAB_SETTINGS_DIR=str(tmp_path/"settings"), JUPYTERLAB_WORKSPACES_DIR=str(tmp_path/"workspaces"),
        JUPYTER_CONFIG_DIR=str(tmp_path/"config"), JUPYTER_RUNTIME_DIR=str(tmp_path/"runtime"),
    )
    options = [
        f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={tmp_path}",
        f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None",
    ]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", *options]
    with open(tmp_path/"lab.log", "w") as log:
        server = subprocess.Popen(command, env={**os.environ, **env}, cwd=tmp_path, stdout=log, stderr=log)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{address}/api?token={token}", timeout=5)
            break
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path/"lab.log").read_text()[-2000:]
            time.sleep(.2)
    yield f"{address}/lab/tree/explore.ipynb?token={token}"
    server.send_signal(signal.SIGTERM) # it ends its kernels, then itself
    try:
        server.wait(timeout=20)
    except subprocess.TimeoutExpired:
        server.kill()

def press_right(browser): # on what has the focus
    for kind in ("keyDown", "keyUp"):
        key = dict(key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39)
        browser.call("Input.dispatchKeyEvent", type=kind, **key)

def test_slider_moves_the_picture(lab, browser):
    browser.open(lab, 1280)
    browser.wait("window.jupyterapp && document.querySelector('.jp-NotebookPanel .jp-Cell') && true", 60)
    browser.evaluate("jupyterapp.restored.then(() => true)")
    browser.evaluate("jupyterapp.shell.currentWidget.sessionContext.ready.then(() => true)")
    browser.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
    middle = browser.wait(f"{COMPLAINT} || {PICTURE}", 120)
    assert middle.startswith("data:image/png"), middle
    for _ in range(4):
        browser.evaluate(f"{SLIDER}.focus()")
        press_right(browser)
    moved = browser.wait(f"(now => now && now != {json.dumps(middle)} && now)({PICTURE})", 30)
    assert moved.startswith("data:image/png")
    assert not browser.evaluate(COMPLAINT)
