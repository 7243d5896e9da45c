"""The page on a phone, in the dark, and with a keyboard alone."""

from __future__ import annotations

import pytest

from tests.demo.pages import TWENTY

pytestmark = pytest.mark.xdist_group("browser")

PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
# WCAG 2.2, level AA: text, and large text (24 px, or 18.7 px in bold)
TEXT, LARGE = 4.5, 3.0

# every text that is to be seen and is not switched off, with its contrast to what is behind it
_CONTRASTS = """() => {
    const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const rgba = color => {
        context.clearRect(0, 0, 1, 1);
        context.fillStyle = color;
        context.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
    const behind = element => {
        const layers = [];
        for (let one = element; one; one = one.parentElement) layers.push(rgba(getComputedStyle(one).backgroundColor));
        const page = matchMedia('(prefers-color-scheme: dark)').matches ? [0, 0, 0, 1] : [255, 255, 255, 1];
        return layers.reverse().reduce((below, top) => over(top, below), page);
    };
    const luminance = color => color.slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const found = [];
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join(' ').trim();
        const box = element.getBoundingClientRect();
        if (!own || box.width < 2 || box.height < 2 || element.closest(':disabled, footer, script, style')) continue;
        if (!element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
        const style = getComputedStyle(element);
        let opacity = 1;
        for (let one = element; one; one = one.parentElement) opacity *= getComputedStyle(one).opacity;
        const back = behind(element);
        const color = rgba(style.color);
        const front = over([...color.slice(0, 3), color[3] * opacity], back);
        const [light, dark] = [luminance(front), luminance(back)].sort((a, b) => b - a);
        const size = parseFloat(style.fontSize);
        found.push({
            text: own.slice(0, 40), ratio: (light + 0.05) / (dark + 0.05),
            large: size >= 24 || (size >= 18.66 && style.fontWeight >= 700),
        });
    }
    return found;
}"""


def fill(page, held_out=5):
    page.paste(f"{TWENTY}\nIs this one?")
    page.wait_rows("parsed-table", 21)
    page.part("skip-mistakes").locator("input").check()
    page.hold_out(held_out)
    page.adapt()
    page.ask("What month comes after May?", "May | June | July")


def weak(page):
    """Texts that are hard to read."""
    found = page.page.evaluate(_CONTRASTS)
    assert len(found) > 30
    return [one for one in found if one["ratio"] < (LARGE if one["large"] else TEXT)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(open_page, app, scheme):
    page = open_page(app, color_scheme=scheme)
    assert weak(page) == []
    fill(page)
    page.picture(scheme)
    assert weak(page) == []
    background = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    shade = sum(int(part) for part in background.strip("rgba()").split(",")[:3]) / 3
    assert (shade < 60) if scheme == "dark" else (shade > 200)


def test_phone_needs_no_sideways_scrolling(open_page, app):
    page = open_page(app, **PHONE)
    assert page.overflow() <= 0
    page.picture("phone-start")
    fill(page)
    assert page.overflow() <= 0
    page.picture("phone")
    heights = page.page.evaluate(
        """() => ['adapt', 'use-ready', 'side-ask', 'download']
            .map(id => document.querySelector(`button#${id}, #${id} button`).getBoundingClientRect().height)"""
    )
    assert min(heights) >= 36, "a finger needs room"


def tab_to(page, name):
    """Press Tab until the focus is in that part, which can then be seen."""
    for _ in range(60):
        page.page.keyboard.press("Tab")
        where = page.page.evaluate(
            """name => {
                const now = document.activeElement;
                if (!now.closest('#' + name)) return null;
                const style = getComputedStyle(now);
                const around = getComputedStyle(now.parentElement);
                return [style.outlineStyle !== 'none' && style.outlineWidth !== '0px', style.boxShadow !== 'none',
                        around.boxShadow !== 'none', now.matches('input[type=range]')].some(one => one);
            }""",
            name,
        )
        if where is not None:
            assert where, f"{name} has the focus, and nothing shows it"
            return
    pytest.fail(f"{name} cannot be reached with Tab")


def test_keyboard_alone(page):
    keyboard = page.page.keyboard
    tab_to(page, "examples-text")
    keyboard.insert_text(TWENTY)
    page.wait_rows("parsed-table", 20)
    page.wait_button("adapt", True)
    tab_to(page, "held-out")
    tab_to(page, "adapt")
    keyboard.press("Enter")
    page.wait_button("side-ask", True)
    page.wait_done()
    assert "Adapted model" in page.text("results")
    tab_to(page, "side-question")
    keyboard.insert_text("What comes next?")
    tab_to(page, "side-options")
    keyboard.insert_text("one | two")
    tab_to(page, "side-ask")
    keyboard.press("Enter")
    page.part("side-answers").locator(".dg-asked").wait_for()
    with page.page.expect_download() as download:
        tab_to(page, "download")
        keyboard.press("Enter")
    assert download.value.suggested_filename.endswith(".zip")


def test_readers_are_told(page):
    """What changes by itself is announced, and what is typed has a name."""
    # it is told by a script that runs once the page is loaded
    page.page.wait_for_function(
        """() => ['announce', 'queue', 'parse-summary']
            .every(id => document.getElementById(id)?.ariaLive === 'polite')"""
    )
    page.paste("Is this one?")
    page.part("parse-summary").get_by_role("alert").first.wait_for()
    for name in ("Your examples", "Question", "Options"):
        assert page.page.get_by_label(name).count() >= 1, name
    nameless = page.page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, [role=button]')]
            .filter(e => e.checkVisibility() && e.type !== 'file')
            .filter(e => !(e.innerText?.trim() || e.ariaLabel || e.title || e.labels?.length
                           || e.getAttribute('aria-labelledby')))
            .map(e => e.outerHTML.slice(0, 120))"""
    )
    assert nameless == []
