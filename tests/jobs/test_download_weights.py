"""Downloading weights as a user does it, from a hub on loopback."""

import subprocess
import sys

import loopback_hub
import tiny
from conftest import ROOT, environment

from model import load_blt, save_blt


def test_what_can_be_downloaded_is_and_the_rest_is_told(tmp_path):
    blt = tiny.blt()
    loopback_hub.publish(tmp_path / "hub", "lab/blt", lambda directory: save_blt(blt, directory))
    job = [sys.executable, str(ROOT / "jobs" / "download_weights.py")]
    with loopback_hub.serve(tmp_path / "hub") as (endpoint, asked):
        settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")}
        settings |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "no_proxy": "127.0.0.1"}

        def download(*models: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*job, "--model", *models, "--output", str(tmp_path / "weights")],
                env=environment(**settings),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )

        done = download("gated/closed", "lab/blt", "no/such")
        before = sum("safetensors" in path for path in asked)
        again = download("lab/blt")
        after = sum("safetensors" in path for path in asked)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [str(tmp_path / "weights" / "blt")]
    assert (
        "error: gated/closed is gated: accept its licence on its hub page, then set HF_TOKEN"
        in done.stderr
    )
    assert "error: no/such: no such directory, and no such model on the hub" in done.stderr
    assert load_blt(tmp_path / "weights" / "blt").config == blt.config
    assert not list((tmp_path / "weights").rglob("photo.png"))
    assert again.returncode == 0 and before > 0
    assert after <= before + 1  # asked whether it has changed, at most; not fetched again
