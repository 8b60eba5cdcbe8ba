"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """Bad input: a file, a field or a value the user gave. The command line prints the message alone and exits with code 2.

    The message is one line that names the file, field or value and says what to do. No full stop ends it.
    """
