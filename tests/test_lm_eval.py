"""The model ``taylorder`` in lm-evaluation-harness, which has to be installed for most of this: an extra of 330 MB."""

from __future__ import annotations

import json
import random
import re
import string
from importlib.util import find_spec
from pydoc_data.topics import topics

import keeping_configs
import pytest
import tiny
import torch
import yaml
from command_line import ROOT, heavy_imports
from mixed_orders import mixed_config

import taylorder
from taylorder.adapt.config import OrderConfig
from taylorder.analysis.text import Text
from taylorder.evaluation.task_prompts import write_prompts
from taylorder.evaluation.written_prompts import NEEDLES
from taylorder.integrations.lm_eval_command import TASKS, completed
from taylorder.models.describe import describe

needs_lm_eval = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'taylorder[lm-eval]'"
)
WORDS = "a maple lantern by the river; seven clocks, no keys. "


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


@pytest.fixture(scope="module")
def model():
    return tiny.llama(max_position_embeddings=512)


@pytest.fixture(scope="module")
def folder(model, tiny_tokenizer, tmp_path_factory):
    return tiny.saved(model, tiny_tokenizer, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def run_folders(model, folder):
    """Configs of the model by what they are: all exact, heads of all sorts, and kept keys."""
    configs = {
        "exact": OrderConfig.uniform(describe(model, str(folder)), "exact"),
        "mixed": mixed_config(model),
        "kept": keeping_configs.small(model)[1],
    }
    for name, config in configs.items():
        config.save(folder.parent / f"runs-{folder.name}" / name / "orders.json")
    return folder.parent / f"runs-{folder.name}"


@pytest.fixture
def lm(folder, run_folders):
    """lm-eval's model, in batches, with a config or, for None, its own."""
    from lm_eval.models.huggingface import HFLM

    from taylorder.integrations.lm_eval_model import TaylorderLM

    def make(config, **options):
        options = {"pretrained": str(folder), "device": "cpu", "dtype": "float32", "batch_size": 3} | options
        return HFLM(**options) if config is None else TaylorderLM(orders=str(run_folders / config), **options)

    return make


def _requests(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, given, index) for index, given in enumerate(arguments)]


def _texts(seed=0):
    """Texts of many lengths, so that batches are padded."""
    draw = random.Random(seed)
    return ["".join(draw.choices(string.ascii_letters + " .", k=length)) for length in (9, 60, 31, 90, 17, 44, 75)]


def _likelihoods(lm):
    pairs = [(text[:-4], text[-4:]) for text in _texts()]
    return lm.loglikelihood(_requests("loglikelihood", pairs), disable_tqdm=True)


def _generated(lm):
    until = {"until": ["\n\n"], "max_gen_toks": 24}
    return lm.generate_until(_requests("generate_until", [(text, until) for text in _texts(1)]), disable_tqdm=True)


def _rolling(lm):
    texts = [(text * 9,) for text in _texts(2)]  # windows of 512 tokens and shorter ones
    return lm.loglikelihood_rolling(_requests("loglikelihood_rolling", texts), disable_tqdm=True)


@needs_lm_eval
@pytest.mark.parametrize("measure", [_likelihoods, _generated, _rolling])
def test_exact_is_plain_hf_to_the_digit(lm, measure):
    assert measure(lm("exact")) == measure(lm(None))


@needs_lm_eval
@pytest.mark.parametrize("config", ["mixed", "kept"])
def test_padding_of_batches_changes_nothing(lm, config):
    """On the right and without a mask for likelihoods, on the left and with a cache for generation."""
    batched, single = lm(config, batch_size=7), lm(config, batch_size=1)
    alone = _likelihoods(single)
    assert [value for value, _ in _likelihoods(batched)] == pytest.approx([value for value, _ in alone], rel=1e-4)
    assert _generated(batched) == _generated(single)
    assert [value for value, _ in alone] != pytest.approx([value for value, _ in _likelihoods(lm(None))], rel=1e-3)


@needs_lm_eval
def test_generation_keeps_the_cache_of_the_config(lm, monkeypatch):
    adapted, made = lm("mixed"), []
    new_cache = type(adapted.handle).new_cache
    monkeypatch.setattr(type(adapted.handle), "new_cache", lambda handle: made.append(1) or new_cache(handle))
    adapted.handle.close()
    adapted.handle = taylorder.attach(adapted.model, adapted.handle.config)
    _generated(adapted)
    assert len(made) == 3  # seven texts in batches of three


@needs_lm_eval
def test_a_config_remembers_its_model(lm, folder):
    """``pretrained`` left out, or a model that is loaded already."""
    assert _likelihoods(lm("exact", pretrained=None)) == _likelihoods(lm(None))
    loaded = taylorder.load(str(folder))
    given = lm("mixed", pretrained=loaded.model, tokenizer=loaded.tokenizer)
    assert _likelihoods(given) == _likelihoods(lm("mixed"))


@needs_lm_eval
def test_results_say_which_config_was_run(lm, run_folders):
    info, other = lm("mixed").get_model_info(), lm("exact").get_model_info()
    assert info["taylorder_digest"] == lm("mixed").handle.digest != other["taylorder_digest"]
    assert info["taylorder_fingerprint"] == OrderConfig.load(run_folders / "mixed" / "orders.json").model.fingerprint
    assert info["model_dtype"] == torch.float32


@needs_lm_eval
def test_a_config_of_another_model_is_refused(lm, tmp_path, tiny_tokenizer):
    other = tiny.saved(tiny.llama(max_position_embeddings=512, num_hidden_layers=1), tiny_tokenizer, tmp_path / "other")
    with pytest.raises(taylorder.errors.ConfigError):
        lm("exact", pretrained=str(other))


@pytest.fixture(scope="module")
def worded(tmp_path_factory):
    """A model with a token per word, as the bundled tasks need, and an exact config for it in a folder of its own."""
    text = Text("topics of the standard library", "\n\n".join(topics.values())[:150_000])
    pattern = r" ?[A-Za-z]+|[\s\S]"
    samples = [text.content, string.printable, *(f"{needle}\n {needle}" for needle in NEEDLES)]
    tokenizer = tiny.tokenizer(pattern, sorted({piece for sample in samples for piece in re.findall(pattern, sample)}))
    model = tiny.llama(max_position_embeddings=512, vocab_size=len(tokenizer))
    folder = tiny.saved(model, tokenizer, tmp_path_factory.mktemp("worded"))
    OrderConfig.uniform(describe(model, str(folder)), "exact").save(folder / "orders.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("taylorder.evaluation.task_prompts.evaluation_text", lambda: text)
        yield folder


def _results(run, tmp_path, *arguments):
    code, out, err = run("lm-eval", *arguments, "--output_path", tmp_path / "out.json", "--device", "cpu")
    assert code == 0, err
    (file,) = tmp_path.glob("out*.json")
    document = json.loads(file.read_text())
    file.unlink()
    return out, document


@needs_lm_eval
def test_what_lm_eval_asks_is_what_the_prompts_ask(worded):
    """Context and right answer together are the prompt, to the space between them."""
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    manager = TaskManager(include_path=str(TASKS), metadata={"orders": str(worded), "lengths": [256]})
    tasks, tokenizer = manager.load(["taylorder"])["tasks"], AutoTokenizer.from_pretrained(worded)
    for kind, questions in {"list": 8, "lookup": 5, "needle": 5}.items():
        task = tasks[f"taylorder_{kind}"]
        task.build_all_requests(rank=0, world_size=1)
        asked = [request for request in task.instances if request.args[1].strip() == request.doc["answer"]]
        prompts = [prompt.text for _, prompt in write_prompts(tokenizer, kind, lengths=[256])]
        assert len(asked) == len(task.eval_docs) == len(prompts) * questions
        assert all(any(prompt.startswith("".join(request.args)) for prompt in prompts) for request in asked)
        assert kind == "list" or all(len(set(task.doc_to_choice(document))) > 5 for document in task.eval_docs)


@needs_lm_eval
def test_bundled_tasks_on_the_command_line(run, tmp_path, worded):
    """The same documents and the same figures as with lm-eval's own model; a row per length and depth."""
    tasks = ("--tasks", "taylorder", "--metadata", "lengths=[256]", "--batch_size", "8")
    out, adapted = _results(run, tmp_path, "--model_args", f"orders={worded}", *tasks)
    _, plain = _results(run, tmp_path, "--model", "hf", "--model_args", f"pretrained={worded},dtype=float32", *tasks)
    assert adapted["results"] == plain["results"]
    assert adapted["config"]["taylorder_digest"].startswith("sha256:")
    for kind in ("list", "lookup", "needle"):
        assert f"taylorder_{kind}" in out
    assert adapted["n-samples"]["taylorder_list"]["effective"] == 4 * 8
    needle = adapted["results"]["taylorder_needle"]
    assert needle["length_256,none"] == needle["acc,none"]
    depths = [needle[f"depth_{depth},none"] for depth in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert sum(depths) / 5 == pytest.approx(needle["acc,none"])


@needs_lm_eval
def test_perplexity_of_a_file(run, tmp_path, worded):
    text = tmp_path / "words.txt"
    text.write_text(WORDS * 40, encoding="utf-8")
    tasks = ("--tasks", "taylorder_text", "--metadata", f"text={text}")
    _, adapted = _results(run, tmp_path, "--model_args", f"orders={worded}", *tasks)
    _, plain = _results(run, tmp_path, "--model", "hf", "--model_args", f"pretrained={worded},dtype=float32", *tasks)
    assert adapted["results"] == plain["results"]
    assert adapted["results"]["taylorder_text"]["word_perplexity,none"] > 1


@needs_lm_eval
@pytest.mark.parametrize(
    ("task", "metadata", "said"),
    [
        ("taylorder_text", "a=1", "--metadata text=FILE"),
        ("taylorder_text", "text=nowhere.txt", "text=nowhere.txt cannot be read"),
        ("taylorder_list", "lengths=[300]", "expected some of 256, 512"),
    ],
)
def test_what_bundled_tasks_are_not_told_is_said(run, worded, task, metadata, said):
    code, _, err = run("lm-eval", "--model_args", f"orders={worded}", "--tasks", task, "--metadata", metadata)
    assert code == 2
    assert said in err


def test_without_lm_eval_the_way_to_it_is_said(run, monkeypatch):
    monkeypatch.setattr("taylorder.commands.lm_eval.find_spec", lambda name: None)
    code, out, err = run("lm-eval", "--tasks", "taylorder")
    assert (code, out) == (2, "")
    assert "pip install 'taylorder[lm-eval]'" in err


def test_help_imports_nothing_heavy_and_arguments_are_left_alone(run):
    heavy, code, out = heavy_imports("lm-eval", "--help")
    assert (heavy, code) == ([], 0)
    assert "taylorder_needle" in out


@pytest.mark.parametrize(
    ("given", "handed"),
    [
        (["--tasks", "x"], ["run", "--tasks", "x", "--model", "taylorder", "--include_path", str(TASKS)]),
        (["run", "-M", "hf"], ["run", "-M", "hf", "--include_path", str(TASKS)]),
        (["--model=hf", "--include_path=y"], ["run", "--model=hf", "--include_path=y"]),
        (["ls", "tasks"], ["ls", "tasks", "--include_path", str(TASKS)]),
    ],
)
def test_arguments_name_model_and_tasks_unless_the_user_does(given, handed):
    assert completed(given) == handed


def test_the_wheel_has_tasks_and_lm_eval_finds_the_model():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, name = project["entry-points"]["lm_eval.models"]["taylorder"].split(":")
    assert f"class {name}(" in (ROOT / f"{module.replace('.', '/')}.py").read_text()

    class Loader(yaml.SafeLoader):
        """Reads the names of functions."""

    Loader.add_constructor("!function", lambda loader, node: node.value)
    names = [yaml.load(path.read_text(), Loader).get("task") for path in sorted(TASKS.glob("*.yaml"))]
    assert names == [None, "taylorder_list", "taylorder_lookup", "taylorder_needle", "taylorder_text"]
