"""The playground in a browser, by a person's path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops
from safetensors.torch import save_file

pytest.importorskip("playwright", reason="needs playwright: pip install playwright")

from playwright.sync_api import Browser, Page, expect

from kdrt.pipeline.result import Result
from kdrt.serve import responses
from kdrt.serve.auth import Keys
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ModelSettings, ServerSettings, ServiceSettings
from tests.support.browser import OTHER_NAME, Visit, chromium, downloaded, drop, image_of_data_url
from tests.support.lora_files import kohya, networks, random_lora
from tests.support.serving import png, running, until, value_of, waiting_model
from tests.support.tiny_bundles import TinyModel

pytestmark = pytest.mark.browser

KEY = "0123456789abcdef"
PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def url(service: ImageService) -> Iterator[str]:
    with running(service) as url:
        yield url


@pytest.fixture
def visit(browser: Browser, url: str) -> Iterator[Visit]:
    """The page on a desktop. In the end nothing may have gone wrong."""
    visit = Visit(browser, url, viewport=DESKTOP)
    visit.ready()
    yield visit
    visit.leave()


@pytest.fixture
def page(visit: Visit) -> Page:
    return visit.page


@pytest.fixture
def phone(browser: Browser, url: str) -> Iterator[Page]:
    visit = Visit(browser, url, viewport=PHONE, has_touch=True, is_mobile=True)
    yield visit.ready()
    visit.leave()


def make(page: Page, prompt: str, **fields: object) -> None:
    """Write a request, make it, and wait for its images."""
    page.fill("#prompt", prompt)
    if not page.locator("#steps").is_visible():
        page.click("#settings summary")
    for name, value in {"steps": 2, **fields}.items():
        page.fill(f"#{name}", str(value))
    before = page.locator("#history-list li").count()
    page.click("#make")
    expect(page.locator("#history-list li")).not_to_have_count(before)
    expect(page.locator("#running")).to_be_hidden()


def alone(service: ImageService, prompt: str, **fields: Any) -> Result[list[Image.Image]]:
    return service.model().pipe(prompt, **{"steps": 2, **fields})


def sent(page: Page) -> dict[str, Any]:
    """What the page asks for when it is to make an image, which is made."""
    before = page.locator("#history-list li").count()
    with page.expect_request("**/v1/generate") as asked:
        page.click("#make")
    expect(page.locator("#history-list li")).not_to_have_count(before)
    body = asked.value.post_data_json
    assert isinstance(body, dict)
    return body


def begin_with_an_image(page: Page) -> None:
    make(page, "a red circle on a blue background", seed=7)
    page.click("#as-start")
    page.click("#paint")


def stroke(page: Page, *points: tuple[float, float]) -> None:
    """Paint over the mask, along points given as fractions of its sides."""
    mask = page.locator("#mask")
    mask.scroll_into_view_if_needed()
    box = mask.bounding_box()
    assert box is not None
    for index, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if index == 0:
            page.mouse.down()
    page.mouse.up()


def is_painted(mask: Image.Image, x: float, y: float) -> bool:
    """Whether a mask is white at a place given as fractions of its sides."""
    value = mask.convert("L").getpixel((int(x * mask.width), int(y * mask.height)))
    assert value in (0, 255)
    return value == 255


def scrolls_to_the_side(page: Page) -> bool:
    """Whether the page, or a part of it, scrolls to the side."""
    return bool(
        page.evaluate(
            """[document.documentElement, ...document.querySelectorAll("#form, #stage")]
                .some((each) => each.scrollWidth > each.clientWidth)"""
        )
    )


def test_a_prompt_becomes_an_image(page: Page, service: ImageService, tmp_path: Path) -> None:
    make(page, "a red circle", seed=7)
    image = downloaded(page, tmp_path)
    expected = alone(service, "a red circle", seed=7)
    assert image.tobytes() == expected.images[0].tobytes()
    assert image.info["parameters"] == str(expected.infotexts[0])
    expect(page.locator("#shown-facts")).to_contain_text("2 steps · guidance 5 · seed 7")
    expect(page.locator("#infotext")).to_have_text(str(expected.infotexts[0]))


def test_previews_show_how_it_comes_about(page: Page) -> None:
    page.evaluate(
        """() => {
            window.seen = new Set();
            new MutationObserver(() => {
                for (const image of document.querySelectorAll("#previews img")) seen.add(image.src);
            }).observe(document.querySelector("#previews"), {
                attributes: true, childList: true, subtree: true,
            });
        }"""
    )
    make(page, "a red circle", steps=8)
    assert page.evaluate("seen.size") > 1
    expect(page.locator("#live")).to_contain_text("Image is ready, seed ")


def test_several_images_are_all_there(page: Page, service: ImageService, tmp_path: Path) -> None:
    make(page, "a star", seed=3, images_per_prompt=3)
    expect(page.locator("#history-list li")).to_have_count(3)
    page.locator("#history-list button").nth(2).click()
    expect(page.locator("#shown-facts")).to_contain_text("seed 5")
    expected = alone(service, "a star", seed=5)
    assert downloaded(page, tmp_path).tobytes() == expected.images[0].tobytes()


def test_same_again_is_the_same(page: Page, tmp_path: Path) -> None:
    make(page, "a red circle")
    first = downloaded(page, tmp_path)
    make(page, "a star")
    page.locator("#history-list button").nth(1).click()
    page.click("#again")
    expect(page.locator("#history-list li")).to_have_count(3)
    assert page.input_value("#prompt") == "a red circle"
    assert downloaded(page, tmp_path).tobytes() == first.tobytes()


def test_what_is_painted_is_made_anew_and_the_rest_kept(page: Page, tmp_path: Path) -> None:
    begin_with_an_image(page)
    before = downloaded(page, tmp_path).convert("RGB")
    stroke(page, (0.1, 0.1), (0.2, 0.2))
    make(page, "a white triangle", seed=1)
    after = downloaded(page, tmp_path).convert("RGB")
    box = ImageChops.difference(before, after).getbbox()
    assert box is not None, "nothing was made anew"
    assert max(box) <= 64 * 0.4, f"{box} was changed, outside of the mask"
    page.click("#again")
    expect(page.locator("#history-list li")).to_have_count(3)
    assert downloaded(page, tmp_path).convert("RGB").tobytes() == after.tobytes()


def test_a_mask_is_what_was_done(page: Page) -> None:
    begin_with_an_image(page)
    stroke(page, (0.2, 0.2), (0.5, 0.2))
    stroke(page, (0.8, 0.8))
    page.click("#undo")
    mask = image_of_data_url(sent(page)["mask_image"])
    assert is_painted(mask, 0.35, 0.2)
    assert not is_painted(mask, 0.8, 0.8)
    page.click("#invert")
    mask = image_of_data_url(sent(page)["mask_image"])
    assert not is_painted(mask, 0.35, 0.2)
    assert is_painted(mask, 0.8, 0.8)
    page.click("#erase")
    stroke(page, (0.8, 0.8))
    assert not is_painted(image_of_data_url(sent(page)["mask_image"]), 0.8, 0.8)
    page.click("#clear")
    assert "mask_image" not in sent(page)
    page.click("#start-remove")
    assert "image" not in sent(page)


def test_a_finger_paints(phone: Page) -> None:
    begin_with_an_image(phone)
    mask = phone.locator("#mask")
    mask.scroll_into_view_if_needed()
    box = mask.bounding_box()
    assert box is not None
    session = phone.context.new_cdp_session(phone)
    left, middle = box["x"] + box["width"] / 4, box["y"] + box["height"] / 2
    for kind, points in (
        ("touchStart", [{"x": left, "y": middle}]),
        ("touchMove", [{"x": left + box["width"] / 2, "y": middle}]),
        ("touchEnd", []),
    ):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    painted = image_of_data_url(sent(phone)["mask_image"])
    assert is_painted(painted, 0.5, 0.5)
    assert not is_painted(painted, 0.5, 0.1)


def test_cancelling_ends_it_on_the_server(page: Page, service: ImageService) -> None:
    made = value_of(service, "kdrt_images_total", model="demo")
    gone = value_of(service, "kdrt_errors_total", kind="client_gone")
    with waiting_model(service):
        page.fill("#prompt", "a red circle")
        page.click("#make")
        expect(page.locator("#told")).to_have_text("Waiting")
        page.click("#cancel")
        expect(page.locator("#notice")).to_have_text("Cancelled.")
    until(lambda: service.model().queue.running + service.model().queue.waiting == 0)
    assert value_of(service, "kdrt_images_total", model="demo") == made
    until(lambda: value_of(service, "kdrt_errors_total", kind="client_gone") == gone + 1)
    expect(page.locator("#cancel")).to_be_hidden()
    make(page, "a red circle")


def test_waiting_long_is_no_failure(
    page: Page, service: ImageService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses.with_heartbeats, "__defaults__", (0.02,))
    with waiting_model(service):
        page.fill("#prompt", "a red circle")
        with page.expect_response("**/v1/generate") as answer:
            page.click("#make")
        expect(page.locator("#told")).to_have_text("Waiting")
        page.wait_for_timeout(200)
    expect(page.locator("#history-list li")).to_have_count(1)
    assert ": waiting" in answer.value.text()


def test_an_image_that_is_dropped_fills_the_form(
    page: Page, service: ImageService, tmp_path: Path
) -> None:
    request = {
        "negative_prompt": "blue",
        "seed": 12,
        "steps": 3,
        "sampler": "DPM++ 2M SDE Heun",
        "schedule": "exponential",
        "guidance_scale": 2.5,
        "guidance_rescale": 0.5,
    }
    made = alone(service, "a yellow star", **request)
    file = tmp_path / "made.png"
    made.save(file)
    drop(page, "#stage", file.read_bytes())
    expect(page.locator("#notice")).to_contain_text("settings of the image are in the form")
    assert page.input_value("#prompt") == "a yellow star"
    assert page.input_value("#negative_prompt") == "blue"
    assert page.input_value("#seed") == "12"
    assert not page.is_checked("#random")
    assert page.input_value("#schedule") == "exponential"
    assert "guidance_rescale" in page.input_value("#further")
    page.click("#make")
    expect(page.locator("#history-list li")).to_have_count(1)
    assert downloaded(page, tmp_path).tobytes() == made.images[0].tobytes()


def test_an_image_that_says_nothing_is_told(visit: Visit) -> None:
    visit.refusals = {400}
    drop(visit.page, "#stage", png(Image.new("RGB", (8, 8))))
    expect(visit.page.locator("#notice")).to_have_text("This image does not say how it was made.")


def test_an_image_that_is_dropped_on_its_place_is_begun_with(page: Page) -> None:
    page.click("#start summary")
    drop(page, "#start-empty", png(Image.new("RGB", (96, 64), "red")))
    expect(page.locator("#start-chosen")).to_be_visible()
    assert (page.input_value("#width"), page.input_value("#height")) == ("96", "64")
    body = sent(page)
    assert image_of_data_url(body["image"]).size == (96, 64)
    assert body["strength"] == 0.8


def test_a_large_image_is_begun_with_at_the_models_size(page: Page) -> None:
    page.click("#start summary")
    drop(page, "#start-empty", png(Image.new("RGB", (600, 300), "red")))
    expect(page.locator("#start-chosen")).to_be_visible()
    assert (page.input_value("#width"), page.input_value("#height")) == ("92", "44")


def test_shapes_have_the_models_area(page: Page) -> None:
    sizes = {}
    for shape in page.locator("#shape option").all_text_contents()[:-1]:
        page.select_option("#shape", label=shape)
        sizes[shape] = (int(page.input_value("#width")), int(page.input_value("#height")))
    assert sizes["Square 1:1"] == (64, 64)
    assert sizes["Landscape 3:2"] == (80, 52)
    assert sizes["Portrait 2:3"] == (52, 80)
    assert all(abs(width * height / 64**2 - 1) < 0.1 for width, height in sizes.values())
    page.fill("#width", "40")
    assert page.input_value("#shape") == "own"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("steps", "61", "steps is 61, and this server makes 60"),
        ("steps", "0", "greater than or equal to 1, not 0"),
        ("steps", "1.5", "should be a valid integer"),
        ("width", "1024", "ask for a smaller width and height"),
        ("images_per_prompt", "9", "these are 9 images"),
        ("further", "{", "this is no JSON"),
        ("further", '{"stps": 1}', "there is no field 'stps'; did you mean 'steps'?"),
        ("further", '{"steps": 1}', "steps has a place of its own"),
    ],
)
def test_what_is_wrong_is_said_beside_its_field(
    visit: Visit, field: str, value: str, said: str
) -> None:
    visit.refusals = {400}
    page = visit.page
    page.click("#more summary")
    page.fill("#prompt", "a red circle")
    page.fill(f"#{field}", value)
    page.click("#make")
    control = page.locator(f"#{field}")
    expect(control).to_have_attribute("aria-invalid", "true")
    expect(control).to_be_focused()
    expect(page.locator(f"#{field}-error")).to_contain_text(said)
    page.fill(f"#{field}", "" if field == "further" else "2")
    expect(page.locator(f"#{field}-error")).to_have_count(0)


def test_what_is_about_no_field_is_said_too(visit: Visit, service: ImageService) -> None:
    visit.refusals = {429}
    page = visit.page
    with waiting_model(service):
        page.fill("#prompt", "a red circle")
        page.evaluate(
            """() => Promise.all([1, 2].map(() => new Promise((resolve) => {
                fetch("v1/generate", {
                    method: "POST", headers: { "content-type": "application/json" },
                    body: JSON.stringify(
                        { prompt: "a", steps: 1, images_per_prompt: 4, stream: true }),
                });
                setTimeout(resolve, 300);
            })))"""
        )
        page.click("#make")
        expect(page.locator("#error")).to_contain_text("wait")
    until(lambda: service.model().queue.running + service.model().queue.waiting == 0)


@pytest.mark.filterwarnings("ignore::kdrt.TruncationWarning")
def test_a_phone_shows_all_of_it(phone: Page) -> None:
    assert not scrolls_to_the_side(phone)
    begin_with_an_image(phone)
    phone.click("#more summary")
    phone.click("#infotext-box summary")
    phone.fill("#negative_prompt", "x" * 300)
    make(phone, "averylongwordwithoutanyblanks" * 12)
    assert not scrolls_to_the_side(phone)


def test_the_keyboard_reaches_everything(page: Page) -> None:
    keyboard = page.keyboard

    def go_to(name: str) -> None:
        for _ in range(80):
            if page.evaluate("document.activeElement.id") == name:
                return
            keyboard.press("Tab")
        raise AssertionError(f"no way to {name} by keyboard")

    go_to("prompt")
    keyboard.type("a red circle")
    go_to("steps")
    keyboard.press("Control+A")
    keyboard.type("2")
    keyboard.press("Control+Enter")
    expect(page.locator("#history-list li")).to_have_count(1)
    go_to("as-start")
    keyboard.press("Enter")
    expect(page.locator("#paint")).to_be_focused()
    keyboard.press("Enter")
    go_to("mask")
    for _ in range(20):
        keyboard.press("ArrowLeft")
    keyboard.press(" ")
    with page.expect_request("**/v1/generate") as asked:
        keyboard.press("Control+Enter")
    body = asked.value.post_data_json
    assert isinstance(body, dict)
    mask = image_of_data_url(body["mask_image"])
    assert is_painted(mask, 0.02, 0.5) is not is_painted(mask, 0.5, 0.5)
    expect(page.locator("#history-list li")).to_have_count(2)
    for name in ("read-file", "cancel", "again", "download", "undo"):
        if page.locator(f"#{name}").is_visible():
            go_to(name)


def test_every_control_has_a_name(page: Page) -> None:
    begin_with_an_image(page)
    page.click("#more summary")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, select, textarea, button, canvas, img")]
            .filter((each) => each.checkVisibility())
            .filter((each) => !each.labels?.length && !each.textContent.trim()
                && !each.ariaLabel && !each.alt && !each.querySelector("img[alt]"))
            .map((each) => each.outerHTML)"""
    )
    assert nameless == []


def test_models_and_loras_are_chosen(
    browser: Browser,
    demo_bundle: Path,
    tiny_models: Callable[[str], TinyModel],
    tmp_path: Path,
) -> None:
    tiny = tiny_models("sd")
    style = tmp_path / "style.safetensors"
    save_file(kohya(random_lora(networks(tiny.diffusers()), ("to_q",))), style)
    models = [
        ModelSettings(bundle=str(demo_bundle)),
        ModelSettings(bundle=str(tiny.bundle), loras={"style": style}),
    ]
    service = ImageService(models, ServiceSettings(warmup=(), threads=1))
    service.load()
    name = [*service.models][1]
    with running(service) as url:
        visit = Visit(browser, url, viewport=DESKTOP)
        page = visit.ready()
        expect(page.locator("#loras")).to_be_hidden()
        page.select_option("#model", name)
        page.check("text=style")
        page.fill("#loras input[type=number]", "0.5")
        page.fill("#width", "32")
        page.fill("#height", "32")
        page.fill("#steps", "1")
        body = sent(page)
        assert (body["model"], body["lora"]) == (name, {"style": 0.5})
        styled = downloaded(page, tmp_path)
        page.uncheck("text=style")
        make(page, "", steps=1)
        page.locator("#history-list button").nth(1).click()
        page.click("#again")
        expect(page.locator("#history-list li")).to_have_count(3)
        assert page.is_checked("text=style")
        assert downloaded(page, tmp_path).tobytes() == styled.tobytes()
        visit.leave()
    service.close()


def test_a_key_is_asked_for_and_kept_in_the_tab(browser: Browser, service: ImageService) -> None:
    with running(service, ServerSettings(keys=Keys(KEY))) as url:
        visit = Visit(browser, url, viewport=DESKTOP)
        visit.refusals = {401}
        page = visit.page
        page.fill("#key", "not the key at all")
        page.keyboard.press("Enter")
        expect(page.locator("#key-error")).to_contain_text("this key does not open")
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        make(page, "a red circle")
        page.reload()
        visit.ready()
        expect(page.locator("#key-dialog")).to_be_hidden()
        make(page, "a red circle")
        assert page.evaluate("localStorage.length") == 0
        visit.leave()


def test_it_works_in_a_network_without_https(browser: Browser, service: ImageService) -> None:
    """Where browsers hold back what they give to trusted pages only."""
    with running(service, ServerSettings(keys=Keys(KEY))) as url:
        visit = Visit(browser, url.replace("127.0.0.1", OTHER_NAME), viewport=DESKTOP)
        visit.refusals = {401}
        page = visit.page
        assert page.evaluate("isSecureContext") is False
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        begin_with_an_image(page)
        stroke(page, (0.2, 0.5), (0.8, 0.5))
        assert is_painted(image_of_data_url(sent(page)["mask_image"]), 0.5, 0.5)
        visit.leave()


def test_the_docs_ask_no_other_host(browser: Browser, url: str) -> None:
    visit = Visit(browser, f"{url}/docs", viewport=DESKTOP)
    for path in ("/v1/generate", "/v1/images/edits", "/sdapi/v1/txt2img", "/metrics"):
        expect(visit.page.get_by_text(path, exact=True).first).to_be_visible()
    visit.page.locator("#operations-health-healthz_healthz_get").click()
    visit.page.get_by_role("button", name="Try it out").click()
    visit.page.get_by_role("button", name="Execute").click()
    answers = visit.page.locator(".live-responses-table tbody")
    expect(answers.get_by_role("cell", name="200")).to_be_visible()
    visit.leave()
