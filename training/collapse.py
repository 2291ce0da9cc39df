"""A codebook that collapses is no fault that stops a run, so the log has to say it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

logger = logging.getLogger(__name__)
TERM = "train/code_usage"  # the share of its codes that a batch uses, for recipes with a codebook
LEAST = 0.01
PATIENCE = 100  # logs in a row


class CollapseWatch:
    """Warns once each time that `train/code_usage` stays below 1 % for 100 logs in a row."""

    def __init__(self) -> None:
        self.low = 0

    def look(self, row: Mapping[str, float]) -> None:
        """Take note of a row of the log."""
        if TERM not in row:
            return
        self.low = self.low + 1 if row[TERM] < LEAST else 0
        if self.low == PATIENCE:
            logger.warning(
                "WARN the codebook has collapsed: under %d %% of its codes were used in %d logs in a row; train with "
                "a quantiser that revives unused codes, a lower learning rate or a smaller codebook",
                round(100 * LEAST), PATIENCE,
            )  # fmt: skip
