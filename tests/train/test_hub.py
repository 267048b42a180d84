"""Names of the hub where it does not answer: it is asked once, and one sentence says what to do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from edgevla import hub
from edgevla.dataset.hub import local_folder
from edgevla.errors import CheckpointError, DatasetError, EdgeVLAError
from edgevla.train.backbone import backbone_folder, tokenizer_folder
from edgevla.train.checkpoint import checkpoint_folder
from edgevla.train.processors import Processors

NAME = "someone/something"
ASKS = {
    "dataset": (lambda: local_folder(NAME), DatasetError),
    "checkpoint": (lambda: checkpoint_folder(NAME), CheckpointError),
    "backbone": (lambda: backbone_folder(NAME), CheckpointError),
    "tokenizer": (lambda: tokenizer_folder(Processors(), {}, NAME), CheckpointError),
}


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """One entry per connection to a hub that hangs up on everybody."""
    counted: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"

        def hang_up() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return
                counted.append(1)

        thread = threading.Thread(target=hang_up)
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        hub.why_unreachable.cache_clear()
        yield counted
        hub.why_unreachable.cache_clear()
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("what", ASKS)
def test_a_hub_that_does_not_answer_is_asked_once(what: str, calls: list[int]) -> None:
    ask, kind = ASKS[what]
    with pytest.raises(kind) as caught:
        ask()
    said = str(caught.value)
    assert NAME in said
    assert f"{constants.ENDPOINT} does not answer" in said
    assert "give a local folder" in said
    assert "\n" not in said
    with pytest.raises(EdgeVLAError):
        ask()
    assert len(calls) == 1


@pytest.mark.parametrize("what", ASKS)
def test_offline_by_wish_nobody_is_asked(
    what: str, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    ask, kind = ASKS[what]
    with pytest.raises(kind, match="HF_HUB_OFFLINE forbids to ask the hub"):
        ask()
    assert calls == []


def test_what_was_fetched_before_is_found_without_a_network(calls: list[int], tmp_path: Path) -> None:
    place = tmp_path / "cache/models--someone--something"
    (place / "snapshots/0").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs/main").write_text("0")
    (place / "snapshots/0/tokenizer.json").write_text("{}")
    assert tokenizer_folder(Processors(), {}, NAME) == place / "snapshots/0"
    assert len(calls) == 1


def test_a_dataset_that_was_fetched_in_an_older_revision_is_found_without_a_network(
    calls: list[int], tmp_path: Path
) -> None:
    place = tmp_path / "cache/datasets--someone--something"
    (place / "snapshots/0").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs/v2.1").write_text("0")
    assert local_folder(NAME) == (place / "snapshots/0", NAME)
    assert len(calls) == 1
