"""Training in one call: `fit`, and what it is made of."""
