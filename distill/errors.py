"""The one exception that a user's mistake raises: a sentence, no traceback."""


class UserError(Exception):
    """Something the user can mend. The message names the offending value, the place and the remedy.

    `train.py` prints the message and exits with code 1; every other exception keeps its traceback,
    because it is a defect of ours.
    """
