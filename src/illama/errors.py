"""The one exception for problems that the user can fix: the command line prints it as one line, exit code 2."""


class UserError(ValueError):
    """What was given, what is allowed, what to do next."""
