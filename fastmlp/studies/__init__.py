"""The chapter's exercises as runs whose results are data, each with a plot."""
