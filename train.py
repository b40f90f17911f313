"""Distil a student: `python train.py loss=dcod model=qwen1.5b`, or `distill train …` where it is installed.

`--help` lists the config groups; the README has examples. Hydra's main is in distill/training/__main__.py.
"""

from distill.training.__main__ import main, run

__all__ = ["main"]

if __name__ == "__main__":
    run()
