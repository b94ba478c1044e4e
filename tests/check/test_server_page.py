"""The server's page, in a real browser."""

import base64
import os
import re
import shutil

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from tests.check.serving import car, wait_for


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium with chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--disable-dev-shm-usage", "--disable-background-networking"):
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


def cards(browser):
    return browser.find_elements("css selector", ".card")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(1200, 900), (390, 780)], ids=["desktop", "phone"])
def test_a_swift_claimed_as_wagonr_is_flagged_on_the_page(server, browser, tmp_path, width, height):
    (tmp_path / "my swift.jpg").write_bytes(car("red", size=(640, 480)))
    (tmp_path / "drawing.jpg").write_bytes(b"<svg/>")
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(server.url)
    wait_for(lambda: len(browser.find_elements("css selector", "#claims label")) == 3)
    browser.find_element("xpath", "//label[span='wagonr']").click()
    files = browser.find_element("id", "files")
    files.send_keys(f"{tmp_path}/my swift.jpg\n{tmp_path}/drawing.jpg")
    wait_for(lambda: len(cards(browser)) == 2 and "checking" not in browser.find_element("id", "results").text)

    swift, drawing = cards(browser)
    assert "other_model" in swift.get_attribute("class") and "claimed wagonr, looks like swift" in swift.text
    assert re.search(r"swift\s+(9\d|100)\.\d %", swift.text)
    assert "unusable" in drawing.get_attribute("class") and "SVG" in drawing.text
    swift.find_element("css selector", ".explain").click()
    canvas = swift.find_element("css selector", "canvas")
    wait_for(canvas.is_displayed)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.find_element("id", "camera").get_attribute("capture") == "environment"
    if folder := os.environ.get("CARSPOTTER_SCREENSHOTS"):
        browser.save_screenshot(f"{folder}/page_{width}.png")
    severe = [
        entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE" and "415" not in entry["message"]
    ]
    assert severe == []


@pytest.mark.slow
@pytest.mark.parametrize(("decided_by", "is_hidden"), [("likeness", True), ("confidence", False)])
def test_what_decided_is_offered_only_where_a_class_was(server, browser, decided_by, is_hidden):
    answer = {"verdict": "not_sure", "reason": "", "probabilities": {"swift": 0.9, "wagonr": 0.1}, "unlike": 0.999}
    browser.get(server.url)
    fill = "const one = card(new Blob(), ''); fill(one, new Blob(), arguments[0]); return $('.explain', one).hidden;"
    assert browser.execute_script(fill, answer | {"decided_by": decided_by}) == is_hidden


@pytest.mark.slow
def test_photos_of_one_car_get_one_verdict_on_top_of_their_own(server, browser, tmp_path):
    for name, colour in (("front", "red"), ("rear", "red"), ("other", "blue")):
        (tmp_path / f"{name}.jpg").write_bytes(car(colour))
    browser.get(server.url)
    wait_for(lambda: len(browser.find_elements("css selector", "#claims label")) == 3)
    browser.find_element("id", "together").click()
    browser.find_element("id", "files").send_keys("\n".join(f"{tmp_path}/{n}.jpg" for n in ("front", "rear", "other")))
    wait_for(lambda: len(cards(browser)) == 4 and "checking" not in browser.find_element("id", "results").text)
    listing, front, _, other = cards(browser)
    assert "3 photos of one car" in listing.text and "Decided by" in listing.text
    assert "front.jpg" in front.text and "looks like swift" in front.text
    assert "other.jpg" in other.text and "looks like wagonr" in other.text


@pytest.mark.slow
def test_a_photo_dropped_on_the_page_is_checked(server, browser):
    browser.get(server.url)
    wait_for(lambda: len(browser.find_elements("css selector", "#claims label")) == 3)
    browser.execute_script(
        """
        const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "dropped.jpg", { type: "image/jpeg" }));
        document.querySelector("#drop").dispatchEvent(
          new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
        """,
        base64.b64encode(car("blue")).decode(),
    )
    wait_for(lambda: cards(browser) and "looks like wagonr" in cards(browser)[0].text)
