"""The one error type that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: the message says what was wrong, where, and what to do.

    The command line prints the message as one line on standard error and exits with code 2.
    """
