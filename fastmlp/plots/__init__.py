"""Pictures, by matplotlib: every function returns a `matplotlib.figure.Figure`."""
