"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Bad input or a bad environment: one line that names the thing, its value and what to do.

    The command line prints the message alone and exits with code 2; every other exception is a defect and keeps its
    traceback.
    """
