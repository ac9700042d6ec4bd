"""One file a method: its prompts, its loss, its defaults. The loop is shared (`base`)."""
