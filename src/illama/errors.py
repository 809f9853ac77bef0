"""The two ends of a command that are no bug of ours: something the user can fix, and a signal."""


class UserError(ValueError):
    """A problem that the user can fix: what was given, what is allowed, what to do next (exit code 2)."""


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A signal asked for the end and everything was saved; the same command goes on from there (exit code 75)."""
