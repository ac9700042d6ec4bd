"""What the methods share: settings, the loop, fresh attacks in each step, run folders."""
