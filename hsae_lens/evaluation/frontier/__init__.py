"""The frontier: quality as a function of the budget. Its public names are in the room's own."""
