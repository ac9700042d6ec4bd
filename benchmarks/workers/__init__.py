"""Time of AdvPT's bank and of an evaluation on one and two workers of a Ray cluster."""
