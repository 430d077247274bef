"""``python -m fastmlp``."""

from fastmlp.cli import app

app()
