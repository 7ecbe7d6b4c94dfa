"""How good a model is, under which conditions."""
