"""Distil reasoning from strong language models into small ones.

One batch's way through the package: `train.py` → `distill.training.module.DistillModule.training_step` →
`distill.objective.objective.Objective` (rollouts × token_loss × token_weight) → `distill.losses`.
"""

__version__ = "0.1.0"
