"""Downloading weights as a user does it, from a hub on loopback."""

import subprocess
import sys

from support import loopback_hub, tiny
from support.jobs import ROOT

from model import load_blt, save_blt


def test_what_can_be_downloaded_is_and_the_rest_is_told(tmp_path):
    blt = tiny.blt()
    job = [sys.executable, str(ROOT / "jobs" / "download_weights.py")]
    with loopback_hub.serve() as hub:
        hub.publish_models(tmp_path / "files", lambda directory: save_blt(blt, directory))

        def download(*models: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*job, "--model", *models, "--output", str(tmp_path / "weights")],
                env=hub.settings(tmp_path / "home"),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )

        same = download("someone/model", "other/model")
        assert same.returncode == 2 and not (tmp_path / "weights").exists()
        assert f"two of the models would go to {tmp_path}/weights/model;" in same.stderr
        done = download("gated/closed", "someone/model", "no/such")
        before = len(hub.asked("safetensors"))
        again = download("someone/model")
        after = len(hub.asked("safetensors"))
    assert done.returncode == 1
    assert done.stdout.splitlines() == [str(tmp_path / "weights" / "model")]
    assert (
        "error: gated/closed is gated: accept its licence on its hub page, then set HF_TOKEN"
        in done.stderr
    )
    assert "error: no/such: no such directory, and no such model on the hub" in done.stderr
    assert load_blt(tmp_path / "weights" / "model").config == blt.config
    assert not list((tmp_path / "weights").rglob("photo.png"))
    assert again.returncode == 0 and before > 0
    assert after <= before + 1  # asked whether it has changed, at most; not fetched again
