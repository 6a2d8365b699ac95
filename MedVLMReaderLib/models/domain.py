"""Whether a scan is like what a model has learned from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SHRINK = 0.1
"""Share of the covariance that is replaced by its diagonal: with few studies the rest is noise."""
QUANTILE = 0.985
"""Share of the made studies that must lie within the limit."""


class Domain(nn.Module):
    """How unlike the learned studies a scan is: Mahalanobis distance of its features' statistics."""

    mean: Tensor
    whiten: Tensor
    limit: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2 * width))
        self.register_buffer("whiten", torch.zeros(2 * width, 2 * width))
        self.register_buffer("limit", torch.tensor(float("inf")))

    def score(self, features: Sequence[Tensor]) -> float:
        """Distance over the limit, from the feature grids of a study (cells, width): above 1 is out of domain."""
        distance = ((statistics(features) - self.mean.float()) @ self.whiten.float()).norm()
        return float(distance / self.limit)

    @classmethod
    def fitted(cls, rows: Tensor, held_out: Tensor) -> Domain:
        """From the statistics (studies, 2 width) of training studies; the limit from others, held out."""
        domain = cls(rows.shape[1] // 2)
        domain.mean = rows.mean(0)
        covariance = torch.cov(rows.T)
        diagonal = torch.diag(covariance.diagonal().clamp(min=1e-8))
        covariance = (1 - SHRINK) * covariance + SHRINK * diagonal
        values, vectors = torch.linalg.eigh(covariance.double())
        domain.whiten = (vectors / values.clamp(min=1e-8).sqrt()).float()
        distances = ((held_out - domain.mean) @ domain.whiten).norm(dim=1)
        domain.limit = torch.quantile(distances, QUANTILE)
        return domain


def statistics(features: Sequence[Tensor]) -> Tensor:
    """(2 width,) mean and standard deviation over all cells of a study; NaN where there are not two."""
    cells = torch.cat([part.float() for part in features])
    if len(cells) < 2:
        return torch.full((2 * cells.shape[1],), torch.nan)
    return torch.cat([cells.mean(0), cells.std(0)])
