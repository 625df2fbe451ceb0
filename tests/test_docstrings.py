"""What the documentation shows is run: the examples of public docstrings, and the Python of the pages.

They say ``taylorder.load()``; here that is a tiny random model under the built-in's name, loaded once.
"""

import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path

import claims_cases
import pytest
import tiny

import taylorder
from taylorder.analysis.results import Analysis
from taylorder.claims import measure as claims_measure
from taylorder.claims import registry
from taylorder.evaluation.evaluate import Evaluation
from taylorder.integrations.export import export
from taylorder.models.describe import describe
from taylorder.models.loading import LoadedModel
from taylorder.selection.by_tolerance import Selection

ROOT = Path(__file__).parent.parent
PUBLIC = [getattr(taylorder, name) for name in taylorder.__all__ if name != "__version__"]
PAGES = ["README.md", *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md")))]
RETURNED = [Analysis, Selection, Evaluation]
EXAMPLES = {
    test.name: test
    for public in (*PUBLIC, *RETURNED)
    for test in doctest.DocTestFinder().find(public, public.__name__, module=inspect.getmodule(public))
    if test.examples
}


@pytest.fixture(scope="module")
def shown(tiny_tokenizer):
    """What the examples go by, as names."""
    model = tiny.llama(max_position_embeddings=8192)
    model.config.name_or_path = "smollm2-135m"
    loaded = LoadedModel(model, tiny_tokenizer, "smollm2-135m")
    config = taylorder.OrderConfig.uniform(model, 3, "mean", 64, 4)
    small = {"text": "All work and no play makes Jack a dull boy. " * 100}
    analysis = taylorder.analyze(model, tiny_tokenizer, max_tokens=2048, **small)
    return {
        "loaded": loaded,
        "analysis": analysis,
        "config": config,
        "selection": taylorder.select(analysis, tolerance=0.07, context=8192),
        "evaluation": taylorder.evaluate(
            model, tiny_tokenizer, config, lengths=[1024], tokens=2048, tasks=False, **small
        ),
    }


@pytest.fixture
def namespace(shown, monkeypatch, tmp_path):
    """The names of an example, in a folder of its own; what was measured above is not measured again."""

    def once(module, name, value):
        measure = getattr(module, name)
        signature = inspect.signature(measure)

        def measured_before(*args, **options):
            signature.bind(*args, **options)
            return measure(*args, **options) if "inputs" in options else value

        monkeypatch.setattr(module, name, measured_before, raising=False)

    monkeypatch.setattr(registry, "NORMAL_INPUTS", claims_cases.SMALL_NORMAL)
    once(claims_measure, "measure", claims_cases.model())
    once(taylorder, "analyze", shown["analysis"])
    once(taylorder, "evaluate", shown["evaluation"])
    monkeypatch.setattr(taylorder, "load", lambda name=None, **_: shown["loaded"], raising=False)
    monkeypatch.chdir(tmp_path)
    return {"taylorder": taylorder, **shown}


def test_every_public_name_has_an_example():
    assert [public.__name__ for public in PUBLIC if public.__name__ not in EXAMPLES] == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_docstrings(name, namespace):
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    example = EXAMPLES[name]
    example.globs = dict(namespace)
    assert not runner.run(example, out=said.append, clear_globs=False).failed, "".join(said)


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in (ROOT / page).read_text(encoding="utf-8")])
def test_python_of_the_pages(page, namespace):
    loaded = namespace["loaded"]
    described = describe(loaded.model, loaded.name)
    export(loaded, described, namespace["config"], "", Path("smollm2-small"), link=False)
    for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, page, "exec"), {})


def test_readme_needs_public_names_alone():
    assert "from taylorder" not in (ROOT / "README.md").read_text(encoding="utf-8")


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, taylorder; print(dir(taylorder), [name for name in sys.modules if name in ('torch', 'numpy')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{taylorder.__all__} []"
