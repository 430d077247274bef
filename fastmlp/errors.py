"""Errors that are both what Python calls them and what torch raises: who catches either is served."""


class ArgumentError(ValueError, RuntimeError):
    """An argument does not fit, as its shape."""


class DtypeError(TypeError, RuntimeError):
    """A dtype does not fit."""
