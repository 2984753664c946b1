"""Score a survey in a process of its own: `python score_target.py FILES OUT MODEL PART_SIZE`."""

import sys

import torch

from spectral_core.scoring import score_survey

if __name__ == "__main__":
    torch.set_num_threads(1)
    files, out, model, size = sys.argv[1:]
    score_survey(files, out, model, part_size=int(size), progress=False)
