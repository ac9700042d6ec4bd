"""What can be checked and measured on a GPU alone, task by task."""
