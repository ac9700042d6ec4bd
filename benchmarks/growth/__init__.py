"""How the cost of a tuning step grows with its sizes, beside a formula for it."""
