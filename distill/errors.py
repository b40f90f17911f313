"""What a user's mistake raises: a sentence, no traceback."""


class UserError(Exception):
    """Something the user can mend. The message names the offending value, the place and the remedy.

    `train.py` prints the message and exits with code 1; every other exception keeps its traceback,
    because it is a defect of ours.
    """


class NonFiniteError(UserError):
    """A loss or a gradient that is no number: training stops before the update."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended training, after a checkpoint, and ends a sweep. The message says how "
    "to go on."""
