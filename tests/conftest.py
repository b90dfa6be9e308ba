"What several tests share."
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from thesis_lib.core import DataError

ROOT = Path(__file__).resolve().parents[1]

@pytest.fixture
def run():
    "Run a command in the project, without progress bars; returns the finished process."
    def call(*args, env=None, timeout=600, cwd=ROOT, **kwargs):
        variables = {**os.environ, "THESIS_BATCH": "1", "OMP_NUM_THREADS": "1", **(env or {})}
        options = dict(cwd=cwd, env=variables, timeout=timeout, **kwargs)
        return subprocess.run([str(a) for a in args], capture_output=True, text=True, **options)
    return call

@pytest.fixture
def python(run): return lambda *args, **kwargs: run(sys.executable, *args, **kwargs)

@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from browser import Browser
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()

def says(call, *parts):
    "The call ends in a DataError of one sentence (one line) that contains every part."
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    for part in parts:
        assert part in message, message


# ---- what every store of pixels owes
def folders(cache): return sorted(p.name for p in Path(cache).iterdir() if p.is_dir())

def little_space(monkeypatch): # on the disk: 1,000 bytes
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

def equal(a, b): # tensors of two batches; nan equals nan
    def same(x, y): return torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(9), y.nan_to_num(9))
    return all(same(x, y) for x, y in zip(a, b))

def depends_on_nothing_but_seed_epoch_and_row(store, augment):
    "The batches of a store of eight: whoever else is in them, and whatever the caller has drawn."
    whole = store.batch(range(8), augment=augment, seed=3, epoch=5)
    for rows in ([0], [7, 2], [3, 4, 5, 6, 0], range(8)):
        assert equal(store.batch(rows, augment=augment, seed=3, epoch=5), [x[list(rows)] for x in whole])
    for change in (dict(seed=4, epoch=5), dict(seed=3, epoch=6)):
        assert not torch.equal(store.batch(range(8), augment=augment, **change).images, whole.images)
    first = store.batch(range(8), augment=augment)
    torch.manual_seed(99)
    np.random.seed(99)
    assert equal(store.batch(range(8), augment=augment), first)

def ranks_share_the_work(store, augment):
    "Ranks see each row of a store of eight at most once, in the batch that one process alone sees."
    options = dict(seed=1, augment=augment)
    alone = store.loader(3, **options)
    alone.set_epoch(2)
    truth = {int(i): [x[j] for x in b] for b in alone for j, i in enumerate(b.index)}
    assert sorted(truth) == list(range(8))
    for world in (2, 3):
        seen = []
        for rank in range(world):
            loader = store.loader(2, rank=rank, world_size=world, **options)
            loader.set_epoch(2)
            batches = list(loader)
            assert len(batches) == len(loader)
            for b in batches:
                for j, i in enumerate(b.index.tolist()):
                    seen.append(i)
                    assert equal([x[j] for x in b], truth[i])
        assert len(seen) == len(set(seen)) == 8 - 8 % world
