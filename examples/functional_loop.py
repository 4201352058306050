"""TRADES in a training loop of your own: nothing of the engine, two parts of timm-robust.

    python examples/functional_loop.py [--epochs 4]

`trades_loss` is the pure function of the method, and `Attacker` makes the images: inside the ball and inside [0, 1],
without weight gradients, with every mode restored. The network is any that takes pixels in [0, 1].
"""

from __future__ import annotations

import argparse

import timm
import torch
import torch.nn.functional as F
from timm_robust_plugins.trades.trades import trades_loss
from torch import nn

from timm_robust.attacks.attacker import Attacker
from timm_robust.data import as_tensors, load_data
from timm_robust.threat import make_threat


class Pixels(nn.Module):
    """Normalisation inside, so that the radius is in units of the pixel range."""

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network((images - self.mean) / self.std)


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--beta", type=float, default=6.0)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    data = load_data("digits")
    (images, labels), (test_images, test_labels) = as_tensors(data.train), as_tensors(data.test)
    network = timm.create_model("resnet10t", num_classes=10)  # any network
    model = Pixels(network, data.mean, data.std)
    attacker = Attacker(model, make_threat("Linf", "8/255", image_size=data.image_size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    for epoch in range(arguments.epochs):
        model.train()
        for rows in torch.randperm(len(images)).split(64):
            batch, targets = images[rows], labels[rows]
            adversarial = attacker(batch, targets, "tpgd", steps=5, alpha=attacker.threat.eps / 2, bn="eval")
            logits, adversarial_logits = model(batch), model(adversarial)
            clean_loss = F.cross_entropy(logits, targets)
            loss = trades_loss(clean_loss, logits, adversarial_logits, beta=arguments.beta)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        attacked = attacker(test_images, test_labels, "pgd", steps=10, alpha=attacker.threat.eps / 4)
        clean, robust = accuracy(model, test_images, test_labels), accuracy(model, attacked, test_labels)
        print(f"epoch {epoch + 1}: test accuracy clean {clean:.1%}, under PGD-10 {robust:.1%}")


if __name__ == "__main__":
    main()
