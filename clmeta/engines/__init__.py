"""Ways to make a step of Algorithm 3."""
