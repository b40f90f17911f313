"""A notebook's kernel in a process that has imported everything: of that it forgets the package, and the
progress bars, which are others in a notebook."""

import sys

from ipykernel import kernelapp

for name in list(sys.modules):
    if name.partition(".")[0] in ("distill", "tqdm"):
        del sys.modules[name]
kernelapp.launch_new_instance()
