"""What ends a command in one line: an error that its user can mend, or a signal."""

import signal


class UserError(Exception):
    """Something the user can mend: the message says what was wrong, where, and what to do.

    The command line prints the message as one line on standard error and exits with code 2.
    """


class Stopped(BaseException):
    """A signal ended the run. No `Exception`, so that nothing takes it for damaged data.

    Args:
      signum: which.
      saved: whether the run was saved because of it; else there was nothing new to save.
    """

    def __init__(self, signum: int, *, saved: bool = False) -> None:
        name = signal.Signals(signum).name
        what = "saved and stopped" if saved else "stopped"
        super().__init__(f"{what} by {name}; the same command goes on from here")
        self.signum, self.saved = signum, saved
