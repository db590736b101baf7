"""Models, their aliases and their history."""
