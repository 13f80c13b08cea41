"""Notebooks that teach the method; ``python -m notebooks.build`` runs them and keeps their outputs."""
