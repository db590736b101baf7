"""Control routes and their documentation."""
