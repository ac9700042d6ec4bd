"""Shared code: models, implementations (rungs), timing, machine facts, result files."""
