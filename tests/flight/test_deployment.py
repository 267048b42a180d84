"""A real deployment with a twitch injected by a fault: saved, found, told and inferred again."""

import re
import time

import pytest
import zmq
from deployment_kit import Deployment, make_bundle, write_fast_profile

from edgevla.cli import main
from edgevla.flight.moments import about, moments
from edgevla.messages import Fault
from edgevla.session import deployments, endpoint, read_deployment
from edgevla.wire import Dealer


def inject(fault):
    """Into the emulated arm of the only deployment."""
    (run_dir,) = deployments()
    ctx = zmq.Context()
    session = bytes.fromhex(read_deployment(run_dir).session)
    dealer = Dealer(ctx, endpoint(run_dir, "emulator", "fault"), session, "test")
    try:
        deadline = time.monotonic() + 20
        while dealer.send(fault) is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        while not dealer.poll():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        dealer.close()
        ctx.destroy(linger=0)


@pytest.mark.realtime
def test_a_twitch_by_a_fault_is_saved_found_told_and_inferred_again(tmp_path, own_runtime, capsys):
    bundle = make_bundle(tmp_path / "bundle", turning=0.05)
    run = Deployment(tmp_path, bundle, write_fast_profile(tmp_path / "fast.toml"))
    try:
        run.wait_for("robot        running", 120)
        time.sleep(3)
        assert main(["inspect", str(run.log_path), "--save"]) == 0
        assert "are being saved" in capsys.readouterr().out
        run.wait_for("saved for good")
        inject(Fault("jump", "elbow_flex", None, None, None, 700))
        assert run.wait_for_end(60) == 1
    finally:
        run.close()
    assert [about(place).why.split(":")[0] for place in moments(run.log_path)] == [
        "asked for by inspect",
        "robot",
    ]
    assert main(["inspect", str(run.log_path)]) == 0
    told = capsys.readouterr().out
    assert re.search(
        r"\d\d:\d\d\.\d+  joint elbow_flex was measured -?[56]\d\.\d deg further within", told
    ), told
    assert "!! robot: elbow_flex.pos jumped within a tick" in told
    assert re.search(r"The largest jump: at \d\d:\d\d\.\d+ joint elbow_flex", told), told
    number = about(moments(run.log_path)[-1]).chunks[-1]["chunk"]
    assert main(["inspect", str(run.log_path), "--replay-chunk", str(number)]) == 0
    assert "EQUAL TO THE BIT" in capsys.readouterr().out
    assert main(["inspect", str(run.log_path), "--save"]) == 2
    assert "--save is for a run that goes on" in capsys.readouterr().err
