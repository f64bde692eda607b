"""The one error of this folder: a local part cannot be had, and what to do about it."""


class LocalPartError(RuntimeError):
    """One line that says what is missing, where, and what to do next. Meant to be shown as it is."""
