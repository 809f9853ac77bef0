"""Colours of all pictures: from the Okabe-Ito palette, told apart by colour-blind people, and a grey."""

from __future__ import annotations

BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
GREY = "#777777"
