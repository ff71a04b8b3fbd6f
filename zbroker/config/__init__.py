"""Settings: what they are (`schema`), where they come from (`load`), ready sets of them (`presets`)."""
