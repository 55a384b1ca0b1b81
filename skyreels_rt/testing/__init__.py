"""Error budgets, planted faults and tiny models, for our tests and for yours."""
