"""How much goes where: costs, budgets, allocations, plans."""
