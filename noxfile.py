"""The verbs of the project: tests, lint, typing, conformance, compat, canvases, chaos, ...

``nox --list`` names all of them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import nox

if TYPE_CHECKING:
    from collections.abc import Sequence

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["tests", "lint", "typing"]
nox.options.reuse_venv = "yes"

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
DATA = ROOT / ".nox" / "coverage-data"
WHEELS = ROOT / ".nox" / "wheels"
CELLS = ROOT / ".nox" / "conformance"
REPORTS = ROOT / ".nox" / "reports"

#: Those of Celery's own tests that go through what is patched.
CELERY_TESTS = [
    *(f"t/unit/tasks/test_{name}.py" for name in ("canvas", "chord", "result", "trace", "tasks")),
    *(f"t/unit/backends/test_{name}.py" for name in ("base", "redis", "database")),
    *(f"t/unit/backends/test_{name}.py" for name in ("cache", "dynamodb", "filesystem")),
    "t/unit/app/test_builtins.py",
]

#: The patches that replace functions inside of which some of these tests look, as
#: `tests/compat/compare.py` lists them.
COMPAT_OFF = (
    *("counted_parts", "tolerant_parts", "chord_failures"),
    *("incremented_parts", "counter_safety_net", "ignored_results"),
)

CELERIES = sorted(
    (
        group.removeprefix("celery-").replace("-", ".")
        for group in PYPROJECT["dependency-groups"]
        if group.startswith("celery-")
    ),
    key=lambda version: [int(part) for part in version.split(".")],
)
#: The whole suite runs on these; on the versions between them only the conformance tests.
ENDS = (CELERIES[0], CELERIES[-1])

#: What checks the accessibility of the page for operators.
AXE_CORE = "axe-core@4.14.1"
#: What draws the diagrams of the documentation.
MERMAID = "mermaid@11.17.2"

#: What `tests` runs: not the facts about Celery alone, nor the tests that take long. Those that do
#: not depend on the Celery version run on the newest one.
QUICK = "not stock and not nightly"
#: The sessions of the nightly run, in their order.
NIGHTLY = [
    "suite",
    "conformance",
    "canvases",
    "fleets",
    "compat",
    "chaos",
    "browser",
    "examples",
    "integration",
]


def versions(*groups: str) -> list[str]:
    return nox.project.dependency_groups(PYPROJECT, *groups)


def celery_group(version: str) -> str:
    return "celery-" + version.replace(".", "-")


_built: list[Path] = []


def built_wheel(session: nox.Session) -> Path:
    """Build the wheel of this checkout for the first session of a run, return it to all."""
    if not _built:
        shutil.rmtree(WHEELS, ignore_errors=True)
        session.install(*versions("build"))
        # Where only environments are made, too: the wheel is part of them.
        session.run_install(
            "python", "-m", "build", "--wheel", "--outdir", str(WHEELS), str(ROOT), silent=True
        )
        _built.extend(WHEELS.glob("*.whl"))
    return _built[0]


def install_wheel(session: nox.Session, *groups: str, extras: str = "demo") -> None:
    # The same version number does not mean the same code: an installed chordguard is replaced.
    wheel = built_wheel(session)
    reinstall = "--reinstall-package=chordguard" if session.venv_backend == "uv" else "--upgrade"
    session.install(reinstall, f"chordguard[{extras}] @ {wheel.as_uri()}", *versions(*groups))


def names_tests(posargs: list[str]) -> bool:
    """Tell whether the arguments for pytest name files or folders themselves."""
    return any(Path(arg.partition("::")[0]).exists() for arg in posargs)


@nox.session
@nox.parametrize("celery", ENDS)
def tests(session: nox.Session, celery: str) -> None:
    """Run what is run before each commit, on the oldest and the newest Celery."""
    install_wheel(session, "test", celery_group(celery))
    selected = QUICK if celery == CELERIES[-1] else f"{QUICK} and not newest"
    run_pytest(session, f"tests-{celery}", ["-m", selected])


@nox.session
def nightly(session: nox.Session) -> None:
    """Run all the rest: every Celery, Celery alone, coverage, chaos, and what else takes long."""
    for name in NIGHTLY:
        session.notify(name)


@nox.session
@nox.parametrize("celery", ENDS)
def suite(session: nox.Session, celery: str) -> None:
    """Run all tests on the oldest and the newest Celery, and add up what they cover."""
    install_wheel(session, "test", celery_group(celery))
    # One folder for each version: running one again replaces only its own share.
    data = DATA / celery / ".coverage"
    shutil.rmtree(data.parent, ignore_errors=True)
    data.parent.mkdir(parents=True)
    # Absolute, since the workers of the tests write their share from elsewhere.
    session.env["COVERAGE_FILE"] = str(data)
    run_pytest(session, f"suite-{celery}", (), ["coverage", "run"])
    if not session.posargs:
        session.notify("coverage")


@nox.session
@nox.parametrize("celery", CELERIES)
def conformance(session: nox.Session, celery: str) -> None:
    """Run the catalogue of defects on every Celery and print it as one table.

    ``-- --record`` writes down what Celery does alone, which is proved otherwise.
    """
    install_wheel(session, "test", celery_group(celery))
    if "--record" in session.posargs:
        run_pytest(session, f"stock-{celery}", ["tests/conformance", "-m", "stock"])
        return
    session.env["CHORDGUARD_CONFORMANCE_DIR"] = str(CELLS)
    if celery == CELERIES[0]:
        shutil.rmtree(CELLS, ignore_errors=True)
    run_pytest(session, f"conformance-{celery}", ["tests/conformance"])
    if celery == CELERIES[-1]:
        session.run("python", "-m", "tests.conformance.table", str(CELLS))


def celery_source(session: nox.Session, celery: str) -> Path:
    """Download the sdist of a Celery, for its tests; return the folder it is unpacked in."""
    folder = Path(session.create_tmp()).resolve()
    source = folder / f"celery-{celery}"
    if not source.exists():
        session.run_install(
            *("python", "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"),
            *("--no-binary", "celery", "--dest", str(folder), f"celery=={celery}"),
        )
        shutil.unpack_archive(folder / f"celery-{celery}.tar.gz", folder, filter="data")
    # The installed Celery is tested, not the one beside its tests.
    shutil.rmtree(source / "celery", ignore_errors=True)
    return source


@nox.session
@nox.parametrize("celery", ENDS)
def compat(session: nox.Session, celery: str) -> None:
    """Run Celery's own tests without the patches and with them; both must do the same."""
    install_wheel(session, celery_group(celery).replace("celery", "upstream"), celery_group(celery))
    source = celery_source(session, celery)
    reports = [source.parent / f"{run}.xml" for run in ("stock", "patched", "off")]
    plugin = ["-p", "patched_apps"]
    off = {"CHORDGUARD_COMPAT_OFF": " ".join(COMPAT_OFF)}
    for report, plugins, env in zip(reports, ([], plugin, plugin), ({}, {}, off), strict=True):
        with session.chdir(source):
            session.run(
                *("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"),
                *("-p", "celery.contrib.pytest", *plugins),
                *(session.posargs or CELERY_TESTS),
                env={"PYTHONPATH": str(ROOT / "tests" / "compat"), **env},
                success_codes=[0, 1],
            )
    session.run("python", str(ROOT / "tests" / "compat" / "compare.py"), *map(str, reports))


@nox.session
@nox.parametrize("celery", ["5.4.0", "5.6.3", "5.7.0"])
def integration(session: nox.Session, celery: str) -> None:
    """Run Celery's own tests of the canvas without the patches and with them, with real workers.

    It fails if a test fails with the patches only. It takes half an hour for each Celery and is
    part of the nightly run; ``-- --backend redis -k chord`` selects.
    """
    install_wheel(session, "test", "integration", celery_group(celery))
    source = celery_source(session, celery)
    session.run("python", "-m", "tests.compat.integration", str(source), *session.posargs)


@nox.session
@nox.parametrize("celery", ENDS)
def canvases(session: nox.Session, celery: str) -> None:
    """Run 300 random canvases on each backend and compare each with a plain evaluation."""
    install_wheel(session, "test", celery_group(celery))
    session.run("python", "-m", "tests.canvases", *session.posargs)


@nox.session
def browser(session: nox.Session) -> None:
    """Run the tests of the page for operators in Chromium; ``-- --pictures`` makes the documents'.

    Chromium is that of the system; axe-core is taken from npm, where that is installed.
    """
    install_wheel(session, "test", "browser", celery_group(CELERIES[-1]))
    env, posargs = {}, [arg for arg in session.posargs if arg != "--pictures"]
    if len(posargs) < len(session.posargs):
        env["CHORDGUARD_PICTURES"] = str(ROOT / "docs" / "pictures")
    axe = Path(session.create_tmp()) / "node_modules" / "axe-core" / "axe.min.js"
    if shutil.which("npm") and not axe.exists():
        folder = str(axe.parents[2])
        session.run("npm", "install", "--no-save", "--prefix", folder, AXE_CORE, external=True)
    if axe.exists():
        env["AXE_CORE"] = str(axe)
    session.run("python", "-m", "pytest", "tests/web/test_browser.py", *posargs, env=env)


@nox.session
@nox.parametrize("celery", ENDS)
def examples(session: nox.Session, celery: str) -> None:
    """Run the examples with real servers, real workers and real chords."""
    install_wheel(session, "test", "examples", celery_group(celery))
    tests = ("tests/monitoring/test_examples.py", "tests/docs/test_examples.py")
    session.run("python", "-m", "pytest", *tests, *session.posargs)


@nox.session
@nox.parametrize("celery", ENDS)
def chaos(session: nox.Session, celery: str) -> None:
    """Kill workers, cut connections: each chord is accounted for at the end."""
    install_wheel(session, "test", celery_group(celery))
    session.run("python", "-m", "tests.chaos", *session.posargs)


@nox.session
@nox.parametrize("celery", ENDS)
def fleets(session: nox.Session, celery: str) -> None:
    """Run fleets in which not all have the patches, or the same Celery."""
    install_wheel(session, "test", celery_group(celery))
    session.run("python", "-m", "tests.fleets")
    (other,) = set(ENDS) - {celery}
    folder = Path(session.create_tmp()).resolve() / other
    session.run("python", "-m", "venv", str(folder))
    python = str(folder / "bin" / "python")
    wheel = f"chordguard @ {built_wheel(session).as_uri()}"
    session.run(python, "-m", "pip", "install", "--quiet", wheel, *versions("test"), external=True)
    session.run(
        *(python, "-m", "pip", "install", "--quiet", *versions(celery_group(other))), external=True
    )
    session.run("python", "-m", "tests.fleets", "--other", python)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure what the patches cost and save, against stock in the same run."""
    install_wheel(session, "test", celery_group(CELERIES[-1]))
    session.run("python", "-m", "benchmarks", *session.posargs)


def run_pytest(
    session: nox.Session, report: str, selection: Sequence[str], run: Sequence[str] = ("python",)
) -> None:
    """Run `selection`, or the tests that the arguments name; report how long each took."""
    if names_tests(session.posargs):
        selection = ()
    REPORTS.mkdir(parents=True, exist_ok=True)
    session.run(
        # The tests wait more than they compute: five of them at once suit two cores.
        *(*run, "-m", "pytest", "-n", "5", "--dist", "loadgroup", "--durations=20"),
        *(f"--junitxml={REPORTS / report}.xml", *selection, *session.posargs),
        # Arguments may select tests that this version does not have.
        success_codes=[0, 5] if session.posargs else [0],
    )


@nox.session
def coverage(session: nox.Session) -> None:
    """Add up what the test runs of all Celery versions covered."""
    session.install(*versions("coverage"))
    env = {"COVERAGE_FILE": str(DATA / ".coverage")}
    shares = [str(DATA / celery) for celery in CELERIES if (DATA / celery).exists()]
    session.run("coverage", "combine", "--keep", "--quiet", *shares, env=env)
    session.run("coverage", "report", env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Run the checks of .pre-commit-config.yaml on all files; ruff mends what it can."""
    session.install(*versions("lint"))
    session.run("pre-commit", "run", "--all-files", "--show-diff-on-failure", *session.posargs)


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types of the package, of a typed user of it, and of the tests."""
    groups = versions("typing", "test", celery_group(CELERIES[-1]))
    session.install("-e", ".[demo,metrics]", *groups)
    session.run("mypy", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation site in docs/_build/html; warnings are errors, links are checked."""
    install_wheel(session, "docs", celery_group(CELERIES[-1]), extras="demo,django,metrics,web")
    site = str(ROOT / "docs" / "_build" / "html")
    shutil.rmtree(site, ignore_errors=True)
    session.run("sphinx-build", "-q", "-W", "--keep-going", "-E", "docs", site, *session.posargs)
    session.run("python", "docs/_ext/links.py", site)


@nox.session
def diagrams(session: nox.Session) -> None:
    """Draw the diagrams of the site whose text has changed, with Chromium and Mermaid from npm."""
    folder = Path(session.create_tmp())
    script = folder / "node_modules" / "mermaid" / "dist" / "mermaid.min.js"
    if not script.exists():
        session.run("npm", "install", "--no-save", "--prefix", str(folder), MERMAID, external=True)
    session.run("python", "docs/_ext/mermaid.py", str(script))


@nox.session
def demo(session: nox.Session) -> None:
    """Show the defects and their end in one terminal, with nothing but this package installed."""
    install_wheel(session, celery_group(CELERIES[-1]))
    session.run("python", "-m", "chordguard", "demo", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build the sdist and the wheel into dist/ and check their metadata.

    ``-- v1.2.3`` also requires that this is the version, and has a section in the changelog.
    """
    session.install(*versions("build"))
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist))
    session.run("twine", "check", "--strict", *map(str, dist.iterdir()))
    for tag in session.posargs:
        version = tag.removeprefix("v")
        if not (dist / f"chordguard-{version}.tar.gz").exists():
            session.error(f"{tag}: `__version__` in src/chordguard/__init__.py is another one")
        if f"\n## [{version}] - " not in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"):
            session.error(f"{tag}: CHANGELOG.md has no section `## [{version}] - date`")
