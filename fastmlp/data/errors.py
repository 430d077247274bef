"""What goes wrong with data."""


class DataError(Exception):
    """Data that is missing, broken or cannot be loaded; the message says what to do."""
