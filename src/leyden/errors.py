"""The one exception that speaks to the user."""


class UserError(ValueError):
    """A request that cannot be met. Its message is one sentence: what is wrong, where, and how to mend it.

    The command line prints it without a traceback and exits with code 2.
    """
