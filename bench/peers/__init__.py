"""Real brokers beside zbroker, in one run: `python -m bench.peers`, `zbroker bench compare`, `make bench-peers`.

`system.py` says what a system can be asked for; each system has a file of its own with its settings and their reasons.
"""
