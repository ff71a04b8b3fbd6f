"""Fixtures that pytest finds by itself where zbroker is installed."""
