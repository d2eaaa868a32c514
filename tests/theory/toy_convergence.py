"""Does the alternating scheme converge as its theory says? Two toy problems: `python -m tests.theory.toy_convergence`.

Experts T descend on f_train, the router P on f_valid, each to its minimum, in turn (CoMiGS, arXiv:2409.13931, section 3.4):
T' = u(P), P' = v(T'). Theorem 3.1: with Lipschitz constants l1, l2 of u and v and a shared optimum the distance to it shrinks by
l1 l2 a turn. Checked on quadratics, where u and v are linear, and near the optimum of a mixture of two linear experts with a
softmax router, where the rate is the spectral radius of H11^-1 H12 H22^-1 H21, H being the Hessian at the optimum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

DTYPE = torch.float64


@dataclass(frozen=True)
class Found:
    """One problem: distances of the experts to the optimum after every turn, and the rates that were predicted."""

    distances: list[float]
    bound: float  # l1 l2: no turn may shrink the distance by less, in the long run
    rate: float  # spectral radius: what it shrinks by in the end

    @property
    def measured(self) -> float:
        """Geometric mean of what the last five turns shrank the distance by."""
        return float((self.distances[-1] / self.distances[-6]) ** (1 / 5))


def random_convex(size: int, smallest: float, largest: float, generator: torch.Generator) -> Tensor:
    """A symmetric matrix (size, size); its least and largest eigenvalue are `smallest` (mu) and `largest` (L)."""
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=DTYPE))
    inner = torch.rand(size - 2, generator=generator, dtype=DTYPE) * (largest - smallest) + smallest
    return basis * torch.cat([inner, torch.tensor([smallest, largest], dtype=DTYPE)]) @ basis.T


def steps(matrix: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """u and v of the quadratic with this Hessian (optimum 0): T = u P, P = v T; (t, p) and (p, t)."""
    one, two = slice(0, experts), slice(experts, None)
    u = -torch.linalg.solve(matrix[one, one], matrix[one, two])
    v = -torch.linalg.solve(matrix[two, two], matrix[two, one])
    return u, v


def quadratic(train: Tensor, valid: Tensor, experts: int, turns: int = 30, seed: int = 0) -> Found:
    """Alternating minimisation of two quadratics with the optimum 0."""
    u, v = steps(train, experts)[0], steps(valid, experts)[1]
    point = torch.randn(experts, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)
    distances = [float(point.norm())]
    for _ in range(turns):
        point = u @ (v @ point)
        distances.append(float(point.norm()))
    bound = float(torch.linalg.matrix_norm(u, 2) * torch.linalg.matrix_norm(v, 2))
    return Found(distances, bound, float(torch.linalg.eigvals(u @ v).abs().max()))


@dataclass(frozen=True)
class LinearMixture:
    """Two linear experts (2, D) and a router (D,) for x (N, D): y = s(x) T_1 x + (1 - s(x)) T_0 x, s the sigmoid of P x.

    The softmax over two experts, with the first one's logit fixed at zero: it would not matter.
    """

    x: Tensor
    y: Tensor

    def loss(self, experts: Tensor, router: Tensor) -> Tensor:
        """Half the mean squared error."""
        share = torch.sigmoid(self.x @ router)
        each = self.x @ experts.view(2, -1).T  # (N, 2)
        return ((1 - share) * each[:, 0] + share * each[:, 1] - self.y).square().mean() / 2


def minimised(function: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The minimum near `start`, by Newton's method."""
    point = start
    for _ in range(50):
        gradient = jacobian(function, point)
        step = torch.linalg.solve(hessian(function, point), gradient)
        point = point - step
        if step.norm() < 1e-15:
            break
    return point


def linear_mixture(turns: int = 12, width: int = 3, samples: int = 400, seed: int = 0) -> Found:
    """Alternating minimisation from near the teacher that made the labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, width, generator=generator, dtype=DTYPE)
    experts, router = (torch.randn(size, generator=generator, dtype=DTYPE) for size in (2 * width, width))
    share = torch.sigmoid(x @ router)
    each = x @ experts.view(2, -1).T
    problem = LinearMixture(x, (1 - share) * each[:, 0] + share * each[:, 1])
    now_experts = experts + 0.03 * torch.randn(2 * width, generator=generator, dtype=DTYPE)
    now_router, distances = router, [float((now_experts - experts).norm())]
    for _ in range(turns):
        fixed = now_experts
        now_router = minimised(lambda p, fixed=fixed: problem.loss(fixed, p), now_router)  # type: ignore[misc]
        known = now_router
        now_experts = minimised(lambda t, known=known: problem.loss(t, known), now_experts)  # type: ignore[misc]
        distances.append(float((now_experts - experts).norm()))
    optimum = torch.cat([experts, router])
    u, v = steps(hessian(lambda both: problem.loss(both[: 2 * width], both[2 * width :]), optimum), 2 * width)
    bound = float(torch.linalg.matrix_norm(u, 2) * torch.linalg.matrix_norm(v, 2))
    return Found(distances, bound, float(torch.linalg.eigvals(u @ v).abs().max()))


def main() -> None:
    """Prints a table."""
    generator = torch.Generator().manual_seed(1)
    one = random_convex(8, 1.0, 4.0, generator)
    # Validation text of another distribution: another function with the same optimum (the theory's first assumption).
    other = random_convex(8, 1.0, 4.0, generator)
    problems = {
        "quadratic, f_valid = f_train": quadratic(one, one, 5),
        "quadratic, f_valid is another": quadratic(one, other, 5),
        "two linear experts, softmax router": linear_mixture(),
    }
    print("| problem | turns | distance first | last | l1 l2 | predicted rate | measured |")
    print("|---|---|---|---|---|---|---|")
    for name, found in problems.items():
        first, last = found.distances[0], found.distances[-1]
        figures = f"{first:.2e} | {last:.2e} | {found.bound:.3f} | {found.rate:.4f} | {found.measured:.4f}"
        print(f"| {name} | {len(found.distances) - 1} | {figures} |")


if __name__ == "__main__":
    main()
