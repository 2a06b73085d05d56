"""What the other tests rely on can fail: axe-core finds what is wrong, and the watch sees errors."""

import pytest
from jupyter_page import Server, Watch, violations

pytestmark = pytest.mark.browser
GOOD = '<html lang="en"><title>A page</title><main><h1>A page</h1><img src="data:," alt="a mask"></main></html>'


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        (' alt="a mask"', "", "image-alt (critical)"),
        (
            "</main>",
            '<div role="slider" tabindex="0" aria-valuenow="1"></div></main>',
            "aria-input-field-name (serious)",
        ),
        ("<h1>", '<h1 style="color: #ccc; background: #fff">', "color-contrast (serious)"),
    ],
)
def test_axe_finds_what_is_wrong(browser, old: str, new: str, rule: str) -> None:
    page = browser.new_page()
    page.set_content(GOOD)
    assert violations(page.locator("html")) == []
    assert old in GOOD
    page.set_content(GOOD.replace(old, new, 1))
    assert [line.split(":")[0] for line in violations(page.locator("html"))] == [rule]
    page.close()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("console.error('out of step')", "console: out of step"),
        ("setTimeout(() => { throw new Error('out of reach') })", "exception: "),
        ("fetch('nowhere')", "404 for "),
        ("fetch('http://192.0.2.1/').catch(() => 0)", "request to http://192.0.2.1/"),
    ],
)
def test_the_watch_sees_an_error(browser, server: Server, script: str, said: str) -> None:
    context = browser.new_context()
    watch = Watch(context, server.url)
    page = context.new_page()
    page.goto(f"{server.url}login?token={server.token}")
    assert watch.problems == []
    page.evaluate(f"() => {{ {script} }}")
    for _ in range(100):
        if watch.problems:
            break
        page.wait_for_timeout(100)
    assert any(line.startswith(said) for line in watch.problems), watch.problems
    context.close()
