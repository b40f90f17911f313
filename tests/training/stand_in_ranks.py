"""Train as `train.py` does, with completions that a stand-in writes: a function of the problem alone.

Started as `stand_in_ranks.py overrides…`, once for each rank."""

import sys
from pathlib import Path

from distill.training import rollouts
from distill.training.run import train
from distill.training.setup import Setup

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent))
    from stand_in_writer import Writer

    rollouts.generate = Writer()
    setup = Setup.from_overrides(sys.argv[1:])
    setup.folder.mkdir(parents=True, exist_ok=True)
    train(setup)
