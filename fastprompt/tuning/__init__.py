"""Code that all methods share: settings, tuning loop, attack in each step, run folders."""
