"""A static page that shows what models make: clips side by side, curves, numbers, configurations.

The page is one folder (index.html and media/), works from the disk without a network, and loads nothing from elsewhere.
"""

from evaluation.gallery.content import Curve, Grid, Line, Overview, Panel, Row, Section, Table
from evaluation.gallery.page import Gallery

__all__ = ["Curve", "Gallery", "Grid", "Line", "Overview", "Panel", "Row", "Section", "Table"]
