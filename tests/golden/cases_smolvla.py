"""SmolVLA: see golden_vla.py for what it shares with Pi0 and Pi0.5."""

from __future__ import annotations

from golden_vla import VlaCases


class Cases(VlaCases):
    pass
