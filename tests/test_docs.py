"""The manual: Sphinx builds it without warnings, its links work, its snippets are run."""

from __future__ import annotations

import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest
from commands import environment, installs, paste
from conftest import Exchange
from documents import DOCS, ROOT, TESTS, blocks, executed, parse
from docutils import nodes
from servers.descriptions import SERVERS
from servers.expectations import END_LATE, ERRORS, KINDS, LATE, expected
from servers.harness import find, require
from servers.page import family

import wsgi_after

PAGES = sorted(path.name for path in DOCS.glob("*.rst"))
TEXTS = [*ROOT.glob("*.rst"), *DOCS.glob("*.rst")]
PICTURES = sorted(DOCS.glob("pictures/*.svg"))


def cells(document):
    """The text of each cell, by row."""
    return [
        [" ".join(cell.astext().split()) for cell in row] for row in document.findall(nodes.row)
    ]


# What Sphinx builds.


class Page(HTMLParser):
    """The links of an HTML file, and the ids that links can lead to."""

    def __init__(self, path):
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id":
                self.ids.add(value or "")
            elif name in {"href", "src"}:
                self.links.append(value or "")


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The directory of the pages, built with warnings as errors and each reference resolved."""
    out = tmp_path_factory.mktemp("html")
    argv = ["sphinx-build", "-W", "-n", "-q", "--keep-going", str(DOCS), str(out)]
    built = subprocess.run(argv, env=environment(), capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return out


@pytest.fixture(scope="module")
def pages(html):
    return {path: Page(path) for path in html.rglob("*.html")}


def test_each_link_within_the_manual_leads_somewhere(pages):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            file = (path.parent / unquote(url.path)).resolve() if url.path else path
            there = file in pages and (not url.fragment or unquote(url.fragment) in pages[file].ids)
            if not (url.scheme or url.netloc or there or (file.is_file() and not url.fragment)):
                broken.append((path.name, link))
    assert broken == []


def test_the_title_of_a_page_has_no_second_article_before_it(html):
    doubled = re.compile(r"\b(?:the|The) (?:<[^>]*>)*The\b")
    pages = {path.name: path.read_text(encoding="utf-8") for path in html.glob("*.html")}
    assert [name for name, text in pages.items() if doubled.search(" ".join(text.split()))] == []


def test_the_reference_has_what_is_public(pages, html):
    public = {f"wsgi_after.{name}" for name in wsgi_after.__all__}
    assert public - pages[html / "api.html"].ids == set()


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_nothing_is_installed_from_the_index_before_it_is_there(text):
    assert re.findall(r"pip install .*wsgi-after", text.read_text(encoding="utf-8")) == []


#: Search terms, and the page to which the index and the search lead.
WORDS = {
    **dict.fromkeys(("background task", "background job", "after request"), "why"),
    **dict.fromkeys(("overhead", "cost of a request", "benchmark"), "performance"),
    **dict.fromkeys(("thread", "background thread", "thread pool", "Celery", "queue"), "hand-off"),
    **dict.fromkeys(("harakiri", "timeout", "reload", "non-blocking", "killed process"), "limits"),
    **dict.fromkeys(("order of middlewares", "fire and forget", "scoped_session"), "limits"),
    **dict.fromkeys(("tests", "pytest"), "testing"),
    "rollback": "django",
}


def test_words_that_people_type_lead_to_a_page(html):
    written = (html / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(written.removeprefix("Search.setIndex(").removesuffix(")"))
    found = {
        word: {index["docnames"][entry[0]] for entry in index["indexentries"].get(word.lower(), [])}
        for word in WORDS
    }
    assert {word for word, page in WORDS.items() if page not in found[word]} == set()
    general = " ".join(Page(html / "genindex.html").links)
    assert {page for page in WORDS.values() if f"{page}.html" not in general} == set()


def test_the_questions_of_the_first_page_are_answered_there(pages, html):
    """Each question has an answer, search terms are among the questions, and pages are linked."""
    rows = cells(parse("index.rst"))
    assert [row for row in rows if len(row) != 2 or not row[1]] == []
    asked = " ".join(question for question, _ in rows).lower()
    for word in ("background task", "overhead", "thread", "harakiri", "non-blocking", "reload"):
        assert word in asked
    [cost] = [answer for question, answer in rows if question.startswith("overhead")]
    assert re.search(r"[\d.]+ µs to a Flask request of \d+ µs \(\d+%\)", cost)
    for server in SERVERS:
        waits = {kind for kind in KINDS if expected(server.name, kind).timing in {LATE, END_LATE}}
        if family(server.name) in {"gunicorn", "uWSGI"}:
            assert waits <= ({*ERRORS} if server.name.startswith("gunicorn") else set())
    linked = {urlsplit(link).path for link in pages[html / "index.html"].links}
    assert {f"{page}.html" for page in {*WORDS.values(), "glossary", "genindex"}} <= linked


#: A newcomer's questions. For each: the row of the first page's table; the page that it links,
#: unless the row has the answer; the last words of the answer.
ASKED = {
    "How do I use it in Flask?": ("my framework", "flask", "after_this_response(fn, ...)"),
    "How do I use a session?": ("a database session", "", "load the object in the callback"),
    "Does the client wait on uWSGI?": ("does the client wait", "", "Not on uwsgi"),
    "How do I test my callbacks?": ("testing", "", "captured.run() runs them"),
    "What if the process is killed?": ("killed", "", "must survive into a queue"),
    "How do I hand over to Celery?": ("Celery", "", "(task.delay, user_id)"),
    "In which order do middlewares go?": ("order of", "", "the outermost one"),
    "How much slower is my app?": ("overhead", "", "%)"),
    "What does gunicorn's timeout do?": ("gunicorn's timeout", "", "and they do not"),
}


def words_until(end: str, text: str) -> int:
    return len((text[: text.index(end)] + end).split())


def test_ten_questions_are_answered_within_thirty_seconds():
    """At 230 words a minute and two seconds a click.

    The reader reads the first lines, follows their link to the table, and reads down its left
    column, then the whole row, then the page as far as the answer.
    """
    first = parse("index.rst")
    rows = cells(first)
    text = first.astext()
    begin = words_until("Quick answers", text)
    install = words_until("pip install .", text[text.index("There is no release") :])
    seconds = {"How do I install it?": (begin + 1 + install) / 230 * 60 + 2}
    for question, (asked, page, end) in ASKED.items():
        [row] = [number for number, cells in enumerate(rows) if cells[0].startswith(asked)]
        read = begin + sum(len(cells[0].split()) for cells in rows[: row + 1])
        read += len(rows[row][1].split())
        assert (page or end) in rows[row][1]
        if page:
            read += words_until(end, parse(f"{page}.rst").astext())
        seconds[question] = read / 230 * 60 + 2 * (2 if page else 1)
    assert len(seconds) == 10
    assert {question: round(time, 1) for question, time in seconds.items() if time > 30} == {}


def test_the_glossary_has_ten_words(html):
    text = (html / "glossary.html").read_text(encoding="utf-8")
    words = re.findall(r'<dt id="term-[^"]*">([^<]*)', text)
    assert (len(words), words) == (10, sorted(words))
    assert max(len(word.split()) for word in words) <= 2


# The snippets.

OF_FRAMEWORKS = {"django.rst", "flask.rst", "pyramid.rst"}  # one test project uses all three pages


@pytest.mark.parametrize("name", [name for name in PAGES if name != "contributing.rst"])
def test_each_snippet_has_a_name_that_a_test_uses(name):
    """The test of each page runs its snippets; tests below cover the page that is left out."""
    found = [block for block in parse(name).findall(nodes.literal_block) if block["classes"]]
    assert [block.astext() for block in found if not block["names"]] == []
    tests = "".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    assert not found or name in OF_FRAMEWORKS or f'blocks("{name}")' in tests


def test_the_first_page(capsys):
    page = blocks("index.rst")
    assert list(page) == ["hello.py", "pip"]
    assert page["pip"] == "$ pip install ."  # test_readme.py runs it
    exchange = Exchange(executed(page["hello.py"].replace("0.5", "0"))["application"])
    assert (list(exchange.result), capsys.readouterr().out) == ([b"Hello\n"], "")
    exchange.result.close()
    assert capsys.readouterr().out == "a mail to ada@example.com\n"


def test_the_page_on_performance():
    """``test_benchmarks.py`` tests what its command does."""
    [command] = blocks("performance.rst").values()
    install, run = command.removeprefix("$ ").split(" && ")
    assert install == ".venv/bin/pip install -e '.[bench]'"
    assert run == ".venv/bin/python -m benchmarks --write"


def test_the_figures_of_throughput_are_what_the_page_on_performance_says_of_them():
    rows = cells(parse("performance.rst"))
    [columns] = [row for row in rows if row[0] == "requests a second"]
    ours, ablated = columns.index("wsgi_after/bare"), columns.index("ablated/bare")
    found = {"Flask's greeting": [], "greeting": [], "20 MB file": []}
    for row in rows:
        what = row[0].rpartition(", ")[2]
        if what in found and len(row) == len(columns):
            found[what].append((float(row[ours]), float(row[ablated])))
    said = re.search(
        r"at least ([\d.]+) of .* Flask app, and at least ([\d.]+) with an app that does nothing",
        " ".join(parse("performance.rst").astext().split()),
    )
    assert said is not None
    assert [len(ratios) for ratios in found.values()] == [5, 5, 2]
    for what, least in zip(found, said.groups(), strict=False):
        assert 0 <= round(min(found[what])[0] - float(least), 3) < 0.01
    assert all(one >= 0.98 for what in found for one, least in found[what] if least >= 0.98)


# What releases and contributors need.


@pytest.fixture
def repository(tmp_path):
    """A git repository with one commit."""
    require([] if find("git") else ["git"])
    who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.com"]
    for arguments in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "Begin"]):
        subprocess.check_call(["git", *arguments], cwd=tmp_path)
    return tmp_path


def test_the_commands_of_a_release(repository):
    """``.ci/run`` runs the commands that build; this test runs those that make the tag."""
    page = blocks("release.rst")
    assert list(page) == ["build", "demo", "upload"]
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for part in ("-m build", "check --strict", ".ci/check-distributions"):
        assert part in page["build"]
        assert part in run
    version, tag, push, upload = re.findall(r"(?m)^\$ (.*)$", page["upload"])
    who = {"GIT_COMMITTER_NAME": "Ada", "GIT_COMMITTER_EMAIL": "ada@example.com"}
    subprocess.check_call(f"{version}; {tag}", shell=True, cwd=repository, env=environment(**who))
    tags = subprocess.check_output(["git", "tag", "-n"], cwd=repository, text=True)
    current = wsgi_after.__version__
    assert tags.split(maxsplit=1) == [f"v{current}", f"wsgi_after {current}\n"]
    assert (push, upload) == ('git push origin "v$VERSION"', "python -m twine upload dist/*")


@installs
def test_the_steps_of_a_release_lead_to_a_wheel_that_shows_the_demo(tmp_path):
    """Run all steps in a clean clone, except the tag and the upload."""
    clone, page = tmp_path / "clone", blocks("release.rst")
    subprocess.check_call(["git", "clone", "-q", str(ROOT), str(clone)])
    build, demo = (page[name].replace("$ ", "") for name in ("build", "demo"))
    here = "python3 -m venv ../venv\n. ../venv/bin/activate\n"
    out = paste(f"set -e\n{here}{build}\n{demo}", clone)
    assert out.count("PASSED") == 2
    assert out.strip().endswith("The client did not wait for the callback.")


def test_the_newest_changes_are_those_of_this_version():
    newest = next(iter(parse("changes.rst").findall(nodes.subtitle)), None) or next(
        section[0] for section in parse("changes.rst").findall(nodes.section)
    )
    assert newest.astext().split()[0] == wsgi_after.__version__


def contributing():
    """The commands of CONTRIBUTING.rst."""
    shown = [block.astext() for block in parse("contributing.rst").findall(nodes.literal_block)]
    return re.findall(r"(?m)^\$ (.*)$", "\n".join(shown))


def test_the_commands_for_who_contributes(repository):
    """CI runs the same commands, except that for a single test; the git hook is installed."""
    install, everything, one, *_ = commands = contributing()
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert f"{install} && {everything}" in run
    sources = (ROOT / "tests" / "test_callbacks.py").read_text(encoding="utf-8")
    assert f"def test_{one.split()[-1]}" in sources
    assert ".venv/bin/sphinx-build -W -n docs build/docs" in commands
    for tool in ('ruff" check .', 'ruff" format --check .', 'mypy"'):
        assert f'"$scratch/tools/bin/{tool}\n' in run
    [make] = [command for command in commands if "pre-commit" in command]
    [check] = [command for command in commands if command.startswith(".venv/bin/ruff")]
    subprocess.check_call(make, shell=True, cwd=repository)
    hook = repository / ".git" / "hooks" / "pre-commit"
    assert hook.read_text() == f"#!/bin/sh\n{check}\n"
    commit = ["git", "commit", "--allow-empty", "-m", "Nothing here is checked"]
    assert subprocess.run(commit, cwd=repository, stderr=subprocess.DEVNULL).returncode != 0


def test_the_map_of_the_tests_has_each_module():
    """Except the modules of frameworks: their tests have the same names."""
    [table] = parse("contributing.rst").findall(nodes.table)
    named = {literal.astext() for literal in table.findall(nodes.literal)}
    package = Path(wsgi_after.__file__).parent
    modules = {path.stem for path in package.rglob("*.py")} - {"__init__"}
    frameworks = {path.stem.removeprefix("test_") for path in TESTS.glob("frameworks/test_*.py")}
    assert modules - named - frameworks == set()
    assert {name for name in named if "/" not in name} <= modules


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_each_file_that_a_text_names_is_there(text):
    named = re.findall(r"``((?:\.ci|benchmarks|docs|tests)/[\w./-]*)``", text.read_text("utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


# The pictures.

#: Each has a WCAG contrast of 3 or more to both backgrounds of furo, light and dark.
SEEN = {"#2271b1", "#686d76", "#8a8f98", "#a8530f", "#c4671b"}


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_a_picture_is_told_in_words_and_seen_in_light_and_dark(path):
    svg = ElementTree.parse(path).getroot()
    title, desc = svg[0], svg[1]
    assert svg.get("role") == "img"
    assert svg.get("aria-labelledby", "").split() == [title.get("id"), desc.get("id")]
    assert all(len(element.text or "") > 20 for element in (title, desc))
    used = {element.get(name) for element in svg.iter() for name in ("fill", "stroke")}
    assert used - {None, "none", "currentColor", "#fff"} <= SEEN
    texts = {element.get("fill") for element in svg.iter() if element.tag.endswith("}text")}
    assert texts <= {"currentColor", "#fff"}


def test_the_note_on_performance_has_the_bounds():
    rows = ["list", "list-1", "list-3", "object", "stream"]
    bounds = json.loads((ROOT / "benchmarks" / "bounds.json").read_text(encoding="utf-8"))
    expected = [
        [f"{bounds[version][row]['of the recipe']:.2f}" for version in ("3.11", "3.13", "3.14")]
        for row in rows
    ]
    [note] = parse("performance.rst").findall(nodes.note)
    assert [row[1:] for row in cells(note)[1:]] == expected
