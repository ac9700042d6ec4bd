"""One file per method: its prompts, its loss, its defaults. `tuning` holds what they share."""
