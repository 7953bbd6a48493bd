"""MLflow's pages and the report as a person sees them, in headless Chromium; the pictures lie under $SCREENSHOTS, or screenshots."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import servers
from helpers.commands import COMMAND
from helpers.synthetic import made
from playwright.sync_api import expect, sync_playwright

from vit_search.report import report
from vit_search.tracking import mlflow_client
from vit_search.tracking.sync import sync_search

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium: no browser here (apt-get install chromium)")

OF_MLFLOW = ("Failed to load resource: the server responded with a status of 404", "/mlflow/assistant/", "ResizeObserver loop")
"""What MLflow's own pages say in the console, of accounts that are not there, an assistant that is refused, and their layout."""


PLANTED = ("random", "mlflow", "uvicorn", "sitecustomize", "flask", "sqlalchemy")


@pytest.fixture(scope="module")
def screenshots():
    folder = Path(os.environ.get("SCREENSHOTS", "screenshots")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    """A search of 100 trials, and MLflow with it."""
    home = tmp_path_factory.mktemp("browsed")
    folder, _, _ = made(home, trials=100, epochs=8)
    uri = f"sqlite:///{home / 'mlruns.db'}"
    before = Path.cwd()
    os.chdir(home)
    try:
        assert sync_search(folder, uri)
    finally:
        os.chdir(before)
    return folder, uri


@pytest.fixture(scope="module")
def pages(search):
    """`vit-search ui`, once it answers."""
    folder, uri = search
    port = servers.free_port()
    for name in PLANTED:
        (folder.parent / f"{name}.py").write_text(f"open({str(folder.parent / 'executed')!r}, 'a').write({name!r})\n")
    server = servers.start([COMMAND, "ui", "--tracking-uri", uri, "--port", str(port)], folder.parent, port)
    yield f"http://127.0.0.1:{port}"
    servers.end(server)


expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """A page that keeps what its console says and what it asks for."""
    context = browser.new_context(viewport={"width": 1400, "height": 1100})
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(f"{message.text} {message.location['url']}") if message.type == "error" else None)
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    yield page
    context.close()


def errors(page):
    return [said for said in page.said if not any(known in said for known in OF_MLFLOW)]


def runs(uri):
    client = mlflow_client.client_for(uri)
    experiment = client.get_experiment_by_name("made").experiment_id
    (parent,) = client.search_runs([experiment], "attributes.run_name = 'made-1'")
    return client, experiment, parent.info.run_id


def test_ui_prints_the_page_of_the_search_and_that_page_is_of_training_without_a_banner(search, pages, page, screenshots):
    folder, uri = search
    _, experiment, _ = runs(uri)
    printed = f"{pages}/#/experiments/{experiment}/runs?workflowType=machine_learning"
    assert printed in (folder.parent / "log").read_text()
    page.goto(printed)
    expect(page.get_by_role("link", name="made-1", exact=True).first).to_be_visible()
    page.screenshot(path=screenshots / "experiment.png")
    page.goto(f"{pages}/#/")
    page.reload()
    expect(page.get_by_text("Experiments").first).to_be_visible()
    page.screenshot(path=screenshots / "home.png")
    kept = page.evaluate("({...localStorage})")
    assert kept["mlflow.workflowType_v1"] == '"machine_learning"'
    assert kept["mlflow.settings.telemetry.enabled_v1"] == "false"
    expect(page.get_by_text("collects usage data")).to_have_count(0)
    expect(page.get_by_text("Welcome to MLflow Assistant")).to_have_count(0)
    expect(page.locator("[data-assistant-ui]:visible")).to_have_count(0)
    expect(page.locator("[data-assistant-ui]")).not_to_have_count(0)  # MLflow still names it so, or the page would not hide it


def test_the_first_page_shows_the_metric_of_each_search_and_keeps_the_columns_that_a_person_takes_away(search, pages, page, screenshots):
    _, uri = search
    client, experiment, parent = runs(uri)
    best = client.get_run(parent).data.metrics["best/val_accuracy"]
    page.goto(f"{pages}/#/experiments/{experiment}/runs?workflowType=machine_learning")
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="made-1", exact=True))
    expect(row).to_be_visible()
    heads = page.get_by_role("columnheader")
    for name in ("best/val_accuracy", "val_accuracy", "outcome", "dim", "depth", "lr"):
        expect(heads.filter(has_text=re.compile(f"^{name}$"))).to_have_count(1)
    expect(page.locator("[role=gridcell]", has_text=f"{best:.4f}"[:5]).first).to_be_visible()
    page.screenshot(path=screenshots / "columns.png")
    key = f'MLflowLocalStorage-1.1-ExperimentPage-["{experiment}"]-ReactComponentState'
    page.evaluate(
        "key => { const state = JSON.parse(localStorage.getItem(key)); state.selectedColumns = ['metrics.`lr`'];"
        " localStorage.setItem(key, JSON.stringify(state)) }",
        key,
    )
    page.reload()
    expect(heads.filter(has_text=re.compile("^outcome$"))).to_have_count(0)
    expect(heads.filter(has_text=re.compile("^lr$"))).to_have_count(1)


def test_the_view_of_the_trials_opens_from_its_menu_with_the_best_one_first(search, pages, page, screenshots):
    _, uri = search
    client, experiment, _ = runs(uri)
    (best,) = client.search_runs([experiment], "tags.search = 'made-1' and tags.rank = '1'")
    page.goto(f"{pages}/#/experiments/{experiment}/runs")
    page.get_by_test_id("saved-views-trigger").click()
    page.get_by_text("trials, best val_accuracy first").click()
    expect(page.get_by_text("100 matching runs")).to_be_visible()
    first = page.locator("[role=row][row-index='0']").get_by_role(
        "link", name=re.compile(r"^trial \d+$")
    )  # the document's order is another
    expect(first).to_have_text(best.info.run_name)
    page.screenshot(path=screenshots / "view.png")


def test_ui_executes_nothing_of_the_current_folder_and_prints_no_request(search, pages, page):
    folder, _ = search
    page.goto(pages)
    assert not (folder.parent / "executed").exists()
    assert "GET /" not in (folder.parent / "log").read_text()


def test_ui_on_a_busy_port_says_so_in_one_line(search, pages):
    folder, uri = search
    port = pages.rpartition(":")[2]
    done = subprocess.run([COMMAND, "ui", "--tracking-uri", uri, "--port", port], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    said = " ".join(done.stderr.split())
    assert f"127.0.0.1:{port}: the port cannot be used (Address already in use); choose another with --port." in said


def test_a_parent_with_a_hundred_children_opens_and_its_links_lead_to_the_stopped_ones(search, pages, page, screenshots):
    _, uri = search
    client, experiment, parent = runs(uri)
    page.goto(f"{pages}/#/experiments/{experiment}/runs/{parent}")
    expect(page.get_by_text("100 of 100 trials over")).to_be_visible()
    expect(page.get_by_text(f"digits/train ({'d' * 32})")).to_be_visible()
    page.screenshot(path=screenshots / "parent.png")
    link = page.get_by_role("link", name="stopped early")
    expect(link).to_be_visible()
    target = link.get_attribute("href")
    page.goto(pages + "/" + target[target.index("#") :])
    stopped = len(client.search_runs([experiment], "tags.search = 'made-1' and tags.outcome = 'stopped'"))
    assert stopped == 33
    expect(page.get_by_text("matching runs")).to_contain_text(str(stopped))
    expect(page.get_by_role("link", name=re.compile(r"^trial \d+$")).first).to_be_visible()
    page.screenshot(path=screenshots / "stopped.png")
    assert errors(page) == []


def test_the_charts_of_a_trial_draw(search, pages, page, screenshots):
    _, uri = search
    client, experiment, _ = runs(uri)
    best = client.search_runs([experiment], "tags.search = 'made-1' and tags.rank = '1'")[0].info.run_id
    page.goto(f"{pages}/#/experiments/{experiment}/runs/{best}/model-metrics")
    expect(page.locator(".js-plotly-plot .scatterlayer .trace").first).to_be_attached()
    points = page.locator(".js-plotly-plot").first.locator(".scatterlayer .trace .point")
    expect(points).to_have_count(8)  # the best so far at each of the epochs, which all improved it
    page.screenshot(path=screenshots / "charts.png")
    assert errors(page) == []


def test_the_report_shows_in_mlflow_and_draws_its_figures(search, pages, page, screenshots):
    _, uri = search
    _, experiment, parent = runs(uri)
    page.goto(f"{pages}/#/experiments/{experiment}/runs/{parent}/artifacts/report.html")
    inside = page.frame_locator("iframe").first
    expect(inside.locator("h1")).to_have_text("made-1: report")
    inside.locator("figure").first.scroll_into_view_if_needed()  # each is drawn as it comes near
    expect(inside.locator("figure .main-svg").first).to_be_visible()
    page.screenshot(path=screenshots / "report-in-mlflow.png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 400])
def test_the_report_draws_every_figure_and_asks_for_nothing(search, browser, screenshots, scheme, width):
    folder, _ = search
    html, _ = report.write(folder)
    context = browser.new_context(viewport={"width": width, "height": 1000}, color_scheme=scheme)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(html.as_uri())
    count = page.evaluate("document.querySelectorAll('figure').length")
    assert count >= 8
    for index in range(count):
        page.locator("figure").nth(index).scroll_into_view_if_needed()
        expect(page.locator("figure").nth(index).locator(".main-svg").first).to_be_attached()
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth + 1")
    page.evaluate("window.scrollTo(0, 0)")
    page.screenshot(path=screenshots / f"report-{scheme}-{width}.png", full_page=True)
    assert said == []
    assert asked == [html.as_uri()]
    context.close()
