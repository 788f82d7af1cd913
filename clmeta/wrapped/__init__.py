"""A torch optimiser as the base update: built over our groups, tried, observed."""
