"""The broker's processes: each module with a `main` is one role; `runtime` turns decisions of `core` into I/O."""
