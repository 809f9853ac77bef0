"""Exceptions that the command line turns into one line and an exit code."""


class UserError(ValueError):
    """A problem that the user can fix: what was given, what is allowed, what to do next. Exit code 2."""


class ToldElsewhere(UserError):  # noqa: N818 - it says what this process does
    """The same problem, which another process of the run tells the user; this one ends in silence. Exit code 2."""


class Stopped(Exception):  # noqa: N818 - the end that a signal asked for is not an error
    """A signal ended the work after everything was saved; the same command goes on. Exit code 75."""
