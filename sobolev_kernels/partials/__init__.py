"""Partial derivatives of a student by their names, all of one pass: `names.py` reads them, `polynomials.py` and
`plan.py` choose the streams, `layers.py` takes these through an MLP, `nested.py` serves any other student, and
`evaluate.py` is what the user calls. `residual.py` is an equation of them, whose function `symbols.py` records, and
`residual_loss.py` how far a student is from it."""
