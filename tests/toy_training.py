"A small training run, started as a script by test_training: python toy_training.py FOLDER [epochs]"
import sys
import time
from functools import partial

import torch

from thesis_lib.training import fit


class Noise:
    "Four batches an epoch, a function of (epoch, rank); slow enough to be killed in the middle."
    batch_size = 8
    def __init__(self, rank, world_size, device): self.rank, self.epoch = rank, 0
    def __len__(self): return 4
    def set_epoch(self, epoch): self.epoch = epoch
    def __iter__(self):
        generator = torch.Generator().manual_seed(100 * self.epoch + self.rank)
        for _ in range(4):
            time.sleep(0.02)
            yield torch.randn(8, 16, generator=generator)

def loss(model, batch): return (model(batch) - batch).square().mean(), {}

if __name__ == "__main__":
    torch.manual_seed(0)
    first, last = torch.nn.Linear(16, 32), torch.nn.Linear(32, 16)
    model = torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Dropout(0.2), last)
    options = dict(epochs=int(sys.argv[2]), optimizer=partial(torch.optim.Adam, lr=1e-2), ema=0.9, clip=1.0)
    result = fit(model, loss, Noise, sys.argv[1], **options)
    print("RESULT", result.world_size, result.starts, result.trained_now, result.checkpoint)
