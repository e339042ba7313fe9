"""Algorithms by name: an objective, where its examples come from, and a recipe of training arguments."""

from prefopt.catalogue.algorithms import Algorithm, algorithms, get_algorithm
from prefopt.catalogue.explain import explain, listing
from prefopt.catalogue.recipes import Recipe

__all__ = ["Algorithm", "Recipe", "algorithms", "explain", "get_algorithm", "listing"]
