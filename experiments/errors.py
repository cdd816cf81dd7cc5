"""The one exception whose message is meant for the user of the command line."""


class UserError(Exception):
    """Bad input: shown as one line on stderr, exit code 2, never a traceback.

    The message names the value, what is allowed and the way out.
    """
