"""The interactive page holds its numbers, cannot be broken by a name, and draws in a real browser."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lightning_rebasin.errors import ConfigurationError, OutputError
from lightning_rebasin.landscape.barrier import BarrierCurve
from lightning_rebasin.plotting.page import Frame, write_page

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
LAMBDAS = (0.0, 0.25, 0.5, 1.0)


def curve(top: float, **more: tuple[float, ...]) -> BarrierCurve:
    return BarrierCurve(LAMBDAS, {**more, "val_loss": (0.1, 0.5, top, 0.3)})


def data_of(page: Path) -> Any:
    found = re.search(
        r'<script id="data" type="application/json">(.*?)</script>',
        page.read_text(),
        re.DOTALL,
    )
    assert found is not None
    return json.loads(found[1])


def test_the_page_holds_every_number(tmp_path: Path) -> None:
    page = tmp_path / "barrier.html"
    write_page({"naive": curve(0.9, val_acc=(1.0, 0.9, 0.4, 0.8))}, page)
    data = data_of(page)
    assert data["metrics"] == ["val_loss", "val_acc"]
    naive = data["frames"][0]["curves"]["naive"]
    assert naive["lambdas"] == list(LAMBDAS)
    assert naive["values"]["val_loss"] == [0.1, 0.5, 0.9, 0.3]
    assert naive["heights"]["val_loss"] == {"height": 0.7, "at": 0.5}
    assert naive["heights"]["val_acc"] == {"height": 0.5, "at": 0.5}


def test_what_is_not_a_number_stays_json(tmp_path: Path) -> None:
    write_page({"naive": curve(math.nan)}, tmp_path / "page.html")
    naive = data_of(tmp_path / "page.html")["frames"][0]["curves"]["naive"]
    assert naive["values"]["val_loss"][2] is None
    assert naive["heights"]["val_loss"]["height"] is None


def test_no_name_can_end_the_data_or_the_title(tmp_path: Path) -> None:
    name = "</script><script>alert(1)</script>"
    write_page({name: curve(0.9)}, tmp_path / "page.html", title=name)
    text = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in text
    assert list(data_of(tmp_path / "page.html")["frames"][0]["curves"]) == [
        name
    ]


def test_the_page_asks_no_network(tmp_path: Path) -> None:
    write_page({"naive": curve(0.9)}, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    addresses = set(re.findall(r"https?://[^\"'\s]+", text))
    # The name of the SVG language is not an address that anything fetches.
    assert addresses == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(link|img|iframe)|\bsrc=|@import|fetch\(", text)


def test_nothing_to_show_is_an_error(tmp_path: Path) -> None:
    for nothing in ({}, []):
        with pytest.raises(ConfigurationError, match="no curve to show"):
            write_page(nothing, tmp_path / "page.html")
    with pytest.raises(OutputError):
        write_page({"naive": curve(0.9)}, tmp_path / "missing" / "page.html")


@pytest.fixture
def shown(tmp_path: Path) -> Any:
    """Runs a script in a page after it has drawn, and returns what the page then looks like."""
    if BROWSER is None:
        pytest.skip("needs chromium")
    page = tmp_path / "page.html"
    frames = [
        Frame(
            step,
            {"naive": curve(0.9 + step), "matched": curve(0.4)},
            f"epoch {step}",
        )
        for step in range(3)
    ]
    write_page(frames, page, title="Two models")

    def run(script: str, *switches: str) -> str:
        tried = tmp_path / "tried.html"
        then = f"<script>{script}</script></body>"
        tried.write_text(page.read_text().replace("</body>", then))
        command = [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=900,900",
            *switches,
            "--dump-dom",
            tried.as_uri(),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=120
        )
        return done.stdout

    return run


def cells(page: str, label: str) -> list[str]:
    row = re.search(rf"<tr>(?:(?!</tr>).)*{label}</td>(.*?)</tr>", page)
    assert row is not None
    return re.findall(r"<td>(.*?)</td>", row[1])


def test_a_browser_draws_the_last_measurement(shown: Any) -> None:
    page = shown("")
    assert page.count('class="curve"') == 4
    assert cells(page, "naive") == ["0.1", "2.9", "0.3", "2.7", "0.5"]
    assert "val_loss between the two models, epoch 2" in page


def test_the_sliders_move_through_training_and_along_lam(shown: Any) -> None:
    page = shown(
        "frame.value = 0; lam.value = 0.75;"
        "document.querySelector('form').dispatchEvent(new Event('input'))"
    )
    # Half way between 0.9 at λ = ½ and 0.3 at λ = 1.
    assert cells(page, "naive") == ["0.1", "0.6", "0.3", "0.7", "0.5"]
    assert "epoch 0" in page
