"""The review page in a real browser: 20 photos by keyboard, an undo, a kill, and everything is still there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from carspotter.curation.curate import COLUMNS, write_curation
from carspotter.curation.reviews import read_reviews
from carspotter.paths import Study
from carspotter.photos.importing import import_folder
from carspotter.photos.table import read_curation, read_photos

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SOURCE = Path(__file__).resolve().parents[2] / "src"
SERVE = """
import sys
from pathlib import Path
from carspotter.paths import Study
from carspotter_review.server import serve_reviews
folder, port = Path(sys.argv[1]), int(sys.argv[2])
with serve_reviews(Study("sample", folder / "data", folder / "results"), "Asha", port) as server:
    print(server.url, flush=True)
    server.wait()
"""


@pytest.fixture(scope="module")
def browser():
    if not (CHROMIUM and DRIVER):
        pytest.skip("no system Chromium with chromedriver")
    os.environ |= {"SE_OFFLINE": "true", "SE_AVOID_STATS": "true"}
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in ("headless=new", "disable-dev-shm-usage", "disable-background-networking", "window-size=1280,900"):
        options.add_argument(f"--{flag}")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def folder(tmp_path):
    for number in range(36):
        label = ("swift", "wagonr")[number % 2]
        file = tmp_path / "in" / label / f"{label[0]}{number // 4}__{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (320, 240), (30 + 5 * number, 90, 140))
        ImageDraw.Draw(image).text((120, 90), str(number), fill="white", font_size=60)
        image.save(file)
    study = Study("sample", tmp_path / "data", tmp_path / "results")
    import_folder(study.data, tmp_path / "in", show_progress=False)
    table = read_photos(study.data)[["sha256", "label"]]
    table[["verdict", "reason", "duplicate_cluster", "car", "decided_by"]] = ["keep", "", "", "", "machine"]
    table["score"] = [n / 36 for n in range(36)]
    table.loc[20:, "reason"] = "too dark: mean brightness 20 of 255"
    write_curation(study, table[COLUMNS])
    return tmp_path


@pytest.fixture
def start(folder):
    servers = []

    def start_server(port=0):
        environment = os.environ | {"PYTHONPATH": str(SOURCE)}
        server = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(folder), str(port)], stdout=subprocess.PIPE, text=True, env=environment
        )
        servers.append(server)
        return server, server.stdout.readline().strip()

    yield start_server
    for server in servers:
        server.kill()
        server.wait()
        server.stdout.close()


class Page:
    """A person at the keyboard, who looks before pressing the next key."""

    def __init__(self, browser):
        self.browser = browser

    def wait(self, condition):
        return WebDriverWait(self.browser, 20, poll_frequency=0.02).until(lambda _: condition())

    def open(self, url):
        self.browser.get(url)
        self.wait(self.shown)

    def shown(self):
        return self.browser.execute_script("return document.body.dataset.shown")

    def press(self, key):
        self.browser.find_element(By.TAG_NAME, "body").send_keys(key)

    def decide(self, *keys):
        """Press keys, wait for the next photo, give the photo that was decided."""
        before = self.shown()
        for key in keys:
            self.press(key)
        self.wait(lambda: self.shown() != before)
        return before

    def text(self, name):
        return self.browser.find_element(By.ID, name).text


def test_twenty_photos_by_keyboard_one_undone_the_server_killed_and_all_are_there(browser, folder, start):
    page = Page(browser)
    server, url = start()
    page.open(url)
    ranking = read_photos(folder / "data")["sha256"].tolist()[::-1]  # the worst has the highest score, see `folder`
    wanted = []
    for number in range(20):
        keys, verdict = (("r", "2"), "reject") if number % 3 == 0 else (("k",), "keep")
        assert page.shown() == ranking[number]
        wanted.append((page.decide(*keys), verdict))
        # on disk before the next photo is shown
        line = json.loads((folder / "data" / "reviews.jsonl").read_text().splitlines()[-1])
        assert (line["sha256"], line["verdict"]) == wanted[-1]
    assert page.text("left") == "16 left of 36"
    page.decide("u")
    assert page.shown() == wanted.pop()[0]
    assert page.text("left") == "17 left of 36"

    server.kill()
    server.wait()
    page.press("k")
    page.wait(lambda: "was not saved" in page.text("trouble"))
    assert page.shown() == ranking[19]
    assert len(read_reviews(folder / "data")) == 19

    start(int(url.rstrip("/").rpartition(":")[2]))
    wanted.append((page.decide("l", "2"), "keep"))  # the page is still open, and goes on
    assert page.text("trouble") == ""
    page.open(url)
    assert page.shown() == ranking[20]
    assert page.text("left") == "16 left of 36"
    wanted.append((page.decide("r", "9"), "reject"))

    reviews = read_reviews(folder / "data")
    assert list(zip(reviews["sha256"], reviews["verdict"], strict=True)) == wanted
    assert reviews["label"].iloc[19] == "wagonr"
    assert reviews["reason"].iloc[[0, -1]].tolist() == ["interior", "other"]


def test_of_twelve_classes_the_twelfth_is_named_by_its_number_and_by_its_name(browser, folder, start):
    study = Study("sample", folder / "data", folder / "results")
    table = read_curation(study)
    table["label"] = [f"model {chr(97 + n % 12)}" for n in range(len(table))]
    write_curation(study, table)
    page = Page(browser)
    _, url = start()
    page.open(url)
    first = page.shown()
    page.press("l")
    find = browser.find_element(By.ID, "find")
    page.wait(find.is_displayed)
    browser.execute_script("arguments[0].blur()", find)
    page.press("1")
    page.wait(lambda: find.get_property("value") == "1")
    assert page.shown() == first and not (folder / "data" / "reviews.jsonl").exists()  # 10 to 14 are possible yet
    page.press("2")
    page.wait(lambda: page.shown() != first)
    second = page.shown()
    page.press("l")
    find.send_keys("model c", Keys.ENTER)
    page.wait(lambda: page.shown() != second)
    classes = sorted({*table["label"], "swift", "wagonr"})
    assert read_reviews(folder / "data")["label"].tolist() == [classes[11], "model c"]


@pytest.mark.parametrize("width", [390, 768])
def test_a_narrow_screen_shows_the_photo_whole_and_nothing_sideways(browser, start, width):
    page = Page(browser)
    _, url = start()
    device = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    try:
        page.open(url)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        photo = browser.find_element(By.ID, "photo").rect
        assert photo["width"] > 0.9 * width and photo["height"] > 250
        keep = browser.find_element(By.CSS_SELECTOR, "#main [data-key=k]").rect
        assert keep["y"] + keep["height"] <= 844  # without scrolling
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_second_tab_shows_what_the_first_one_decided(browser, start):
    page = Page(browser)
    _, url = start()
    page.open(url)
    first_tab = browser.current_window_handle
    browser.switch_to.new_window("tab")
    second_tab = browser.current_window_handle
    page.open(url)
    decided = page.decide("k")
    browser.switch_to.window(first_tab)
    page.wait(lambda: page.text("left") == "35 left of 36")
    page.wait(lambda: page.shown() not in ("", decided))
    browser.switch_to.window(second_tab)
    browser.close()
    browser.switch_to.window(first_tab)


def test_mouse_filters_comparison_and_summary(browser, folder, start):
    page = Page(browser)
    _, url = start()
    page.open(url)
    assert "too dark" in page.text("about").lower()
    browser.find_element(By.CSS_SELECTOR, ".thumbs button").click()
    assert browser.find_element(By.ID, "other").is_displayed()
    page.press("c")
    first = page.shown()
    browser.find_element(By.CSS_SELECTOR, "#kind option[value='']").click()  # nothing found
    page.wait(lambda: page.shown() != first)
    assert "too dark" not in page.text("about").lower()
    before = page.shown()
    browser.find_element(By.CSS_SELECTOR, "#main [data-key=r]").click()
    browser.find_element(By.CSS_SELECTOR, "#reasons button:nth-child(3)").click()
    page.wait(lambda: page.shown() != before)
    (line,) = read_reviews(folder / "data").itertuples()
    assert (line.sha256, line.verdict, line.reason) == (before, "reject", "close-up")

    browser.find_element(By.LINK_TEXT, "Summary").click()
    page.wait(lambda: "1 decided, 1 rejected" in page.text("summary"))
    (picture,) = browser.find_elements(By.CSS_SELECTOR, "#summary img")
    page.wait(lambda: picture.get_property("naturalWidth") == 240)
    severe = [entry for entry in browser.get_log("browser") if "Content Security Policy" in entry["message"]]
    assert severe == []
