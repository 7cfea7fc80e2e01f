"""Bilevel optimisation: one variable solves a problem in another."""
