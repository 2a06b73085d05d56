"""What a notebook as HTML must keep so that it can be read without seeing it: words for pictures, headings in order."""

from collections.abc import Iterator

import bs4

# nbconvert puts this where a picture has no words.
NO_WORDS = "No description has been provided for this image"


def html_of(notebook: str) -> str:
    """As `jupyter nbconvert --to html` makes it, of what is in the notebook's file."""
    import nbformat
    from nbconvert import HTMLExporter

    return HTMLExporter().from_notebook_node(nbformat.reads(notebook, as_version=4))[0]


def unreadable(html: str) -> list[str]:
    """What is wrong with a page, each with the tag that it is wrong with."""
    page = bs4.BeautifulSoup(html, "html.parser")
    return [*pictures_without_words(page), *headings_out_of_step(page)]


def pictures_without_words(page: bs4.BeautifulSoup) -> Iterator[str]:
    for image in page.select("img, area, input[type=image]"):
        if words(image, "alt") in ("", NO_WORDS):
            yield f"no alt text: {opening(image)}"
    for drawing in page.find_all("svg"):
        if drawing.find_parent("svg") or drawing.find_parent(attrs={"aria-hidden": "true"}):
            continue  # part of another picture, or decoration
        if drawing.get("aria-hidden") == "true":
            continue
        if drawing.get("role") != "img":
            yield f"a drawing without role=img: {opening(drawing)}"
        title = drawing.find("title", recursive=False)
        if not (words(drawing, "aria-label") or (title and title.get_text().strip())):
            yield f"a drawing without aria-label or title: {opening(drawing)}"


def headings_out_of_step(page: bs4.BeautifulSoup) -> Iterator[str]:
    """One title, and below a heading none that skips a level."""
    found = page.find_all(["h1", "h2", "h3", "h4", "h5", "h6"])
    titles = [heading for heading in found if heading.name == "h1"]
    if len(titles) != 1:
        yield f"{len(titles)} headings of the first level, not one: {[text(heading) for heading in titles]}"
    before = 0
    for heading in found:
        level = int(heading.name[1])
        if level > before + 1:
            yield f"h{level} after {f'h{before}' if before else 'nothing'}: {text(heading)}"
        before = level


def words(tag: bs4.Tag, name: str) -> str:
    return str(tag.get(name) or "").strip()


def text(heading: bs4.Tag) -> str:
    return heading.get_text().strip().rstrip("¶")


def opening(tag: bs4.Tag) -> str:
    """The tag without what is in it, cut where it carries a whole picture."""
    return str(tag).split(">")[0][:200] + ">"
