"""Tuned prompts as a small folder to share: its settings, its model card, the Hugging Face Hub."""
