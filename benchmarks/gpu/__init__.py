"""Checks and measurements that need a GPU, divided into tasks."""
