"""How the cost of a tuning step grows with its sizes, compared with a FLOP formula."""
