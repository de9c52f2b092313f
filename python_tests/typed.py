"""What a type checker is told of the public names: `mypy --strict` is run on this file and finds nothing.

It is not executed.
"""

from typing import Any

import torch
from typing_extensions import assert_type

import sobolev_kernels as sk
from sobolev_kernels.testing import allowed, assert_within_rule, error

x = torch.rand(8, 2)
student = sk.MLP(2, 1, width=16, activation=("sin", 30.0), device="cpu", dtype=torch.float32)
targets = sk.Targets(values=x[:, :1], jacobian=torch.rand(8, 1, 2))

loss = sk.sobolev_loss(student, x, targets, directions=sk.Directions.sphere(4, seed=1), weights=(1.0, 2.0))
assert_type(loss, torch.Tensor)
loss.backward()
terms = sk.sobolev_loss(student, x, targets, return_terms=True, head=("log_softmax", 2.0), wrt=[0])
assert_type(terms, sk.SobolevTerms)
assert_type(terms.derivative, torch.Tensor)
of_a_function = sk.sobolev_loss(lambda x: x.sum(1), x, targets, cotangents=sk.Cotangents.basis(), reduction="none")
assert_type(of_a_function, torch.Tensor)

loss_fn = sk.SobolevLoss(directions=sk.Directions.sphere(4), value_loss=("huber", 0.5), output_weight=torch.ones(1))
loss_fn(student, x, targets).backward()
loss_fn.at(3)(student, x, targets).backward()

assert_type(sk.jvp(student, x, torch.rand(3, 8, 2)), tuple[torch.Tensor, torch.Tensor])
assert_type(sk.vjp(student, x, sk.Cotangents.sphere(2, centred=True)), tuple[torch.Tensor, torch.Tensor])
assert_type(sk.jet(student, x, sk.Directions.normal(2), order=2), tuple[torch.Tensor, ...])
assert_type(sk.laplacian(student, x, wrt=torch.tensor([True, False])), tuple[torch.Tensor, torch.Tensor])
assert_type(sk.hvp(student, x, torch.rand(3, 8, 2), torch.rand(3, 8, 2)), tuple[torch.Tensor, torch.Tensor])
assert_type(sk.partials(student, x, ["u", "u_xx"], fields=sk.Fields("x t -> u")), dict[str, torch.Tensor])
burgers = sk.Residual(lambda p: p.u_t + p.u * p.u_x, "x t -> u")
assert_type(burgers.diff("x").explain(), str)
assert_type(sk.residual_loss(student, x, [burgers, burgers.diff("x")], weights=[1, 2]), torch.Tensor)
assert_type(sk.residual_loss(student, x, burgers, return_terms=True).terms, dict[str, torch.Tensor])
assert_type(sk.residual_scales(student, x, burgers), dict[str, float])
points = sk.Points([burgers, burgers.diff("x")], lambda: torch.rand(64, 2), target={"residual": x[:, :1]})
assert_type(sk.fit(student, epochs=3, residuals=[points], finish=2), sk.History)
assert_type(sk.explain(student, x, sk.Directions.sphere(4), of="jvp"), str)

assert_type(sk.Directions.sphere(4, seed=1).at(3), sk.Directions)
assert_type(sk.Cotangents.given(torch.eye(2)), sk.Cotangents)
assert_type(sk.Sine(30.0)(x), Any)
assert_type(sk.Targets.from_teacher(student, x, directions=sk.Directions.sphere(2)), sk.Targets)
assert_type(targets[2:5].to("cpu", torch.float64), sk.Targets)
assert_type(len(sk.SobolevDataset(x, targets)), int)
assert_type(list(sk.ACTIVATIONS), list[str])
assert_type(sk.check_targets(x, targets).ok, bool | None)
assert_type(sk.derivative_error(student, targets, x)["gradient"].error, float)
assert_type(sk.term_gradients(student, x, targets).weights, tuple[float, ...])

assert_within_rule("loss", loss, loss.double())
assert_type(error(loss, loss), float)
assert_type(allowed(loss, torch.float32), float)
