"""Imported by the server of `warm`: what most commands of tests compose lies ready in its copies."""

import gc

import composing
from hydra import compose, initialize_config_dir

from distill.config.resolvers import register

_SHORT = ["data=traces", "benchmark=none", "logger=csv"]
_WORDS = {
    "train": [_SHORT, *([f"loss={loss}", *_SHORT] for loss in ("sft", "dcod", "forward_kl", "on_policy_kd"))],
    "evaluate": [[]],
    "generate": [[]],
}

register()
composing.install()
with initialize_config_dir(str(composing.CONF), version_base="1.3"):
    for name, lines in _WORDS.items():
        for words in lines:
            compose(name, words, return_hydra_config=True)
gc.collect()
gc.freeze()  # copies do not look at all this for garbage, which takes them a copy of the memory
