"""Judges of histories: what clients were told, against what they could read."""
