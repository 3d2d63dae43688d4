"""Searches that plan: they look at situations behind the present one, or at several commands of it."""
