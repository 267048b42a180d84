"""The command that a missing extra's error gives installs it, from a clone and from a wheel."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgevla import extras
from edgevla.errors import MissingExtraError
from edgevla.extras import install_words, reinstall_words


def test_a_clone_is_named_by_its_folder() -> None:
    root = Path(extras.__file__).parents[1]
    assert install_words("eval") == f'pip install -e "{root}[eval]"'
    assert str(MissingExtraError("eval", "matplotlib")).endswith(f"Install it with: {install_words('eval')}")


@pytest.mark.parametrize("is_there", [True, False])
def test_a_wheel_is_named_by_where_it_was_installed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    wheel = tmp_path / "my wheels" / "edgevla-1.2.3-py3-none-any.whl"
    wheel.parent.mkdir()
    if is_there:
        wheel.touch()
    told = {"direct_url.json": json.dumps({"url": wheel.as_uri(), "archive_info": {}})}
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages/edgevla/extras.py"))
    monkeypatch.setattr(
        "importlib.metadata.distribution", lambda _: SimpleNamespace(version="1.2.3", read_text=told.get)
    )
    place = wheel if is_there else "PATH/edgevla-1.2.3-py3-none-any.whl"
    assert install_words("cpu") == f'pip install "{place}[cpu]"'
    assert reinstall_words() == f'pip install --force-reinstall "{place}"'
