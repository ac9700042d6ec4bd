"""One module per method: its prompts, loss and defaults. `tuning` holds the shared code."""
