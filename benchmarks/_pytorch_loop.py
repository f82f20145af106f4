"""The PyTorch side of ``benchmarks/pytorch.py``: plain modules and a plain loop, losses written from their formulas.

It is a separate program, so that PyTorch may be installed in another environment: it reads weights and batches from a
file, and then commands from standard input: ``losses <steps>`` prints the loss of each step, ``time <steps>`` the
seconds.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

try:
    import torch
    from torch.nn import functional
except ImportError as problem:
    raise SystemExit(f"benchmarks.pytorch needs PyTorch: pip install torch, or --torch-python ({problem})") from None


def mlp(weights: list[np.ndarray]) -> list[torch.Tensor]:
    """Return kernels and biases, transposed from Keras' (inputs, outputs) to PyTorch's (outputs, inputs)."""
    return [torch.tensor(w.T if w.ndim == 2 else w) for w in weights]


def forward(parameters: list[torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and the last hidden layer."""
    hidden = x
    for index in range(0, len(parameters) - 2, 2):
        hidden = functional.relu(functional.linear(hidden, parameters[index], parameters[index + 1]))
    return functional.linear(hidden, parameters[-2], parameters[-1]), hidden


def soft_targets(teacher: torch.Tensor, student: torch.Tensor, labels: torch.Tensor, t: float) -> torch.Tensor:
    """T^2 KL(teacher || student), Hinton et al. 2015."""
    p, log_q = functional.softmax(teacher / t, -1), functional.log_softmax(student / t, -1)
    return t * t * functional.kl_div(log_q, p, reduction="batchmean")


def decoupled(teacher: torch.Tensor, student: torch.Tensor, labels: torch.Tensor, t: float) -> torch.Tensor:
    """T^2 (TCKD + 8 NCKD), Zhao et al. 2022, eq. 7: the two-class part and the rest without the target."""
    target = functional.one_hot(labels, teacher.shape[-1]).bool()

    def parts(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        p = functional.softmax(logits / t, -1)
        sure = p[target]
        rest = functional.log_softmax((logits / t)[~target].reshape(len(logits), -1), -1)
        return torch.log(torch.stack([sure, 1.0 - sure], -1)), rest

    (b_t, r_t), (b_s, r_s) = parts(teacher), parts(student)
    tckd = (b_t.exp() * (b_t - b_s)).sum(-1)
    nckd = (r_t.exp() * (r_t - r_s)).sum(-1)
    return t * t * (tckd + 8.0 * nckd).mean()


def main() -> None:
    """Read and execute commands."""
    path, case, threads = sys.argv[1:]
    if int(threads):
        torch.set_num_threads(int(threads))
    stored = np.load(path)
    teacher = mlp([stored[f"teacher_{i}"] for i in range(6)])
    first = [stored[f"student_{i}"] for i in range(6)]
    x, y = torch.tensor(stored["x"]), torch.tensor(stored["y"]).long()

    def begin() -> tuple[list[torch.Tensor], torch.optim.Optimizer]:
        student = [w.requires_grad_() for w in mlp(first)]
        return student, torch.optim.SGD(student, lr=0.003, momentum=0.9)

    def step(student: list[torch.Tensor], optimizer: torch.optim.Optimizer, number: int) -> torch.Tensor:
        inputs, labels = x[number % len(x)], y[number % len(y)]
        with torch.no_grad():
            taught, hint = forward(teacher, inputs)
        logits, hidden = forward(student, inputs)
        loss = 0.5 * functional.cross_entropy(logits, labels)
        if case == "soft targets and hint":
            mean = functional.mse_loss(hidden, hint)
            loss = loss + 0.5 * (soft_targets(taught, logits, labels, 4.0) + mean)
        else:
            loss = loss + 0.5 * {"soft targets": soft_targets, "decoupled": decoupled}[case](
                taught, logits, labels, 4.0
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    student, optimizer = begin()
    for line in sys.stdin:
        what, steps = line.split()
        if what == "losses":
            student, optimizer = begin()
            print(json.dumps([float(step(student, optimizer, i)) for i in range(int(steps))]), flush=True)
        else:
            started = time.perf_counter()
            for i in range(int(steps)):
                loss = step(student, optimizer, i)
            float(loss)
            print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
