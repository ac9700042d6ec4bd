"""How accurate tuned prompts are, and how strong the attacks."""
