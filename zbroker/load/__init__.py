"""Workloads: what `zbroker demo` and `zbroker bench` run, and how they measure."""
