"""`edgevla serve BUNDLE --protocol openpi`: what the command line says, and the server from start to end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgevla.bundle import load_bundle
from edgevla.errors import UsageError
from edgevla.serve.hosted import Hosted
from edgevla.serve.metrics import MetricsPage
from edgevla.serve.openpi.address import DEFAULT_BIND, check_extra, ws_address
from edgevla.serve.openpi.hosting import adaptor


def check(bind: str | None, folders: Mapping[str, Path], keys: Path | None) -> str:
    """Where to listen, once all is judged that can be before an engine is loaded.

    Raises:
        UsageError, MissingExtraError, ConfigError, BundleError: what cannot be, or does not fit.
    """
    address = ws_address(bind or DEFAULT_BIND, "--bind", least_port=0)
    if len(folders) > 1:
        raise UsageError(
            f"openpi's clients cannot say which policy they mean, and there are {', '.join(folders)}; start one "
            "server each"
        )
    check_extra()
    adaptor(load_bundle(next(iter(folders.values())), verify=False).manifest, keys)
    return str(address)


def serve(
    endpoint: str,
    hosted: Hosted,
    keys: Path | None,
    place: tuple[str, int] | None,
    note: Callable[..., None],
    say: Callable[[str], None],
    asked: Sequence[int],
) -> dict[str, Any]:
    """Until `asked` holds a signal. place: host and port of the figures. How many requests there were."""
    from edgevla.serve.openpi.server import OpenpiServer

    fitting = adaptor(hosted.policy.manifest, keys)
    server = OpenpiServer(hosted, fitting, note)
    for remark in (f"as clients of {fitting.where} ask it", *fitting.remarks()):
        say(f"openpi: {remark}")
    page = None
    try:
        if place is not None:
            page = MetricsPage(*place, server.metrics.text)
            say(f"figures: {page.address}")
        listening = ws_address(endpoint, "--bind", least_port=0)
        asyncio.run(
            server.run(
                listening, lambda: bool(asked), lambda where: say(f"listening at {where}, openpi's protocol")
            )
        )
    finally:
        if page is not None:
            page.close()
    answered = round(server.metrics.value("requests_total", outcome="answered"))
    return {"answered": answered, "requests": round(server.metrics.total("requests_total"))}
