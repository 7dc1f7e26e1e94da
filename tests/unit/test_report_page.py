"""The page of `hpcmoe report`, in a headless Chromium."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import browser
import numpy as np
import pytest
from browser import Tab
from helpers import command, spec_file
from ran import put_run

from hpcmoe.report import report as verb
from hpcmoe.spec import Attention, Dense, ModelSpec, Moe

IMAGES = "[...document.images]"
HOSTILE = ("</td><script>alert(1)</script>", '" onerror="alert(1)', "<img src=http://192.0.2.1/x>", "&lt;b&gt;",
           "$x^2$ \\frac", "\u202egnp.exe", "x" * 300, "\x1b[2Jgone", "größe 数 🦜")


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    """One browser for all tests of this file."""
    if why := browser.missing():
        pytest.skip(why)
    pytest.importorskip("matplotlib", reason="not installed: matplotlib")
    with browser.tab() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture
def page(folder, capsys, monkeypatch) -> Path:
    """All figures there are, of two runs on different numbers of ranks: made once."""
    path = folder / "page.html"
    if not path.exists():
        spec = ModelSpec("m", 3, 16, 99, 9, Attention(2, 2, 8), Dense(8, 1), Moe(8, 2, 32))
        job = {"model": str(spec_file(folder / "m.toml", spec)), "compute": {"dtype": "float32"},
               "prompts": "p.h5", "output": "o.h5"}
        runs = [put_run(folder / f"{ranks}.h5", ranks=ranks, job=job, seed=ranks, steps=400 // ranks)
                for ranks in (2, 4)]
        ended = command(capsys, monkeypatch, "report", *runs, "-o", path, "--hardware", "h100-ib")
        assert (ended.code, ended.err) == (0, ""), ended
    return path


class TestPage:
    """As a person opens it."""

    def test_nothing_is_wrong_and_nothing_is_fetched(self, tab, page):
        tab.open(page)
        assert tab.complaints() == [] and tab.asked() == [page.resolve().as_uri()]
        text = page.read_text("utf-8")
        assert not re.search(r"(src|href)=[\"'](?!data:|#)", text) and "<script" not in text and "url(" not in text

    def test_every_figure_is_drawn(self, tab, page):
        tab.open(page)
        count = len(list(page.with_suffix("").iterdir()))
        assert count == 1 + 1 + 2 * 12  # stages beside each other, strong scaling, and twelve of each run
        assert tab.value(f"{IMAGES}.length") == count == tab.value("document.querySelectorAll('figure').length")
        assert tab.value(f"{IMAGES}.every(i => i.complete && i.naturalWidth > 800 && i.naturalHeight > 300)")
        # of each, how many pixels are not those of its corner: none is a blank sheet
        inked = tab.value(f"""{IMAGES}.map(image => {{
            const sheet = document.createElement('canvas');
            [sheet.width, sheet.height] = [image.naturalWidth, image.naturalHeight];
            const ink = sheet.getContext('2d'); ink.drawImage(image, 0, 0);
            const values = new Uint32Array(ink.getImageData(0, 0, sheet.width, sheet.height).data.buffer);
            return values.filter(v => v != values[0]).length / values.length }})""")
        assert min(inked) > 0.01, inked

    def test_every_figure_says_what_it_shows(self, tab, page):
        tab.open(page)
        words = tab.value(f"{IMAGES}.map(i => i.alt)")
        assert all(len(alt) > 40 and re.search(r"\d", alt) and "nan" not in alt for alt in words), words
        captions = tab.value("[...document.querySelectorAll('figcaption p')].map(p => p.innerText)")
        assert len(captions) == len(words) and all(re.search(r"\d", said) for said in captions)

    @pytest.mark.parametrize("width", [1280, 400])
    def test_no_sideways_scroll_and_large_letters(self, tab, page, width):
        tab.open(page)
        tab.resize(width)
        tab.value("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert tab.value("document.documentElement.scrollWidth") <= width
        wide = tab.value("""[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll')
            && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName)""")
        assert wide == []
        letters = tab.value("""[...document.querySelectorAll('p, td, th, h1, h2, h3, li, summary')].map(
            e => parseFloat(getComputedStyle(e).fontSize))""")
        assert min(letters) >= 14
        drawn = tab.value(f"Math.min(...{IMAGES}.map(i => i.clientWidth / i.naturalWidth))")
        assert drawn * 25 >= 8 if width == 400 else drawn * 25 >= 12  # letters of pictures have 25 pixels and more

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_words_stand_out_from_the_page(self, tab, page, scheme):
        """As WCAG's AA asks: a contrast of 4.5."""
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        tab.open(page)
        paper = _rgb(tab.value("getComputedStyle(document.body).backgroundColor"))
        assert (paper.mean() > 128) == (scheme == "light")
        inks = tab.value("""[...new Set([...document.querySelectorAll('p, th, td, h1, h2, h3, a, summary')].map(
            e => getComputedStyle(e).color))]""")
        assert all(_contrast(_rgb(ink), paper) >= 4.5 for ink in inks), inks
        tab.call("Emulation.setEmulatedMedia", features=[])

    def test_the_summary_comes_first_and_headings_go_down_in_steps(self, tab, page):
        tab.open(page)
        heads = tab.value("[...document.querySelectorAll('h1, h2, h3')].map(h => h.tagName + h.innerText)")
        assert heads[1:3] == ["H2Overview", "H3Summary"]
        assert all(int(b[1]) <= int(a[1]) + 1 for a, b in pairwise(heads))
        assert tab.value("document.querySelector('table').compareDocumentPosition(document.images[0]) & 4") == 4
        assert tab.value("[document.documentElement.lang, document.querySelectorAll('main, h1').length]") == ["en", 2]

    def test_tables_too_wide_for_a_phone_scroll_by_themselves(self, tab, page):
        tab.open(page)
        tab.resize(400)
        assert tab.value("""[...document.querySelectorAll('table')].every(t => t.parentElement.className == 'scroll'
            && t.parentElement.tabIndex == 0)""")


def test_what_files_say_is_text(tab, page, tmp_path, capsys, monkeypatch):
    """Nothing in it is markup, fetches anything, or widens the page. Pictures have no words of files; any will do."""
    drawn = (page.with_suffix("") / "run-1-links.png").read_bytes()
    monkeypatch.setattr(verb.style, "png", lambda picture: drawn)
    runs = [put_run(tmp_path / f"out{n} <b>&amp;.h5", steps=4, layers=2, ranks=2 * len(HOSTILE), hosts=HOSTILE,
                    job={"model": words, words: {words: words}, "n": n}, stop=words, name=words + "{}",
                    identity=f"{words}\n# model {words}\n# prompts {n}\n", versions=f"hpcmoe {n} {words}")
            for n, words in enumerate(HOSTILE[:2])]
    ended = command(capsys, monkeypatch, "report", *runs, "-o", tmp_path / "page.html")
    assert (ended.code, ended.err) == (0, "") and "\x1b" not in ended.out and "\u202e" not in ended.out
    tab.open(tmp_path / "page.html")
    tab.resize(400)
    assert tab.complaints() == [] and tab.asked() == [(tmp_path / "page.html").as_uri()]
    assert tab.value("document.documentElement.scrollWidth") <= 400
    assert tab.value("document.querySelectorAll('script, b, iframe, object').length") == 0
    assert tab.value(f"{IMAGES}.every(i => i.src.startsWith('data:image/png') && !i.onerror)")
    text = tab.value("document.body.innerText")
    assert "out0 <b>&amp;.h5" in text and HOSTILE[0] in text and HOSTILE[1] in text and "\u202e" not in text


def _rgb(words: str) -> np.ndarray:
    return np.array([float(n) for n in re.findall(r"[\d.]+", words)[:3]])


def _contrast(one: np.ndarray, other: np.ndarray) -> float:
    """WCAG 2, "contrast ratio"."""
    def luminance(rgb: np.ndarray) -> float:
        c = rgb / 255
        return float(np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
