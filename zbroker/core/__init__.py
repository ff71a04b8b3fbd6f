"""State machines that decide and do no I/O: events in, effects out."""
