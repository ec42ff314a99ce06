"""The one exception that a command turns into a single line and exit code 2."""


class UserError(Exception):
    """Input that cannot be served: names the file or key, what was expected and what was found, in one line."""
