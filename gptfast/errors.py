"""The one exception for what the user can mend: bad input, a bad setting, a damaged file."""


class GptfastError(ValueError):
    """Says what was wrong, where, and what to do. The command line prints it in one line and exits with 2."""
