"""Read-only tools for files, with the broker up or dead."""
